"""What the API tells of how much a version changes, matrix by matrix."""

from zhub.client.wire.answer import Answer


class Strength(Answer):
    """How much a version changes: of the weights' norm, and how far its multipliers are from one, if it has any."""

    share: float
    distance: float | None


class LayerStrength(Strength):
    """One layer; None: what is in no layer."""

    layer: int | None
    matrices: int


class MatrixStrength(Strength):
    name: str
    layer: int | None


class SimilarVersion(Answer):
    """Another version, and the cosine between the changes of the two."""

    model: str
    cosine: float


class MatrixDifference(Answer):
    """The difference of two changes of one matrix as a share of the weight's norm, and their cosine."""

    name: str
    share: float | None
    cosine: float | None


class VersionDifference(Answer):
    """How a version differs from another; ``cosine`` is None where the two cannot be compared."""

    model: str
    cosine: float | None
    matrices: list[MatrixDifference]


class ExpertStrengths(Strength):
    """What a version changes, where, and what it is like; ``shown`` says what the figures of its kind are."""

    model: str
    kind: str
    shown: str
    layers: list[LayerStrength]
    matrices: list[MatrixStrength]
    similar: list[SimilarVersion]
    against: VersionDifference | None
