"""Answers about experts, evaluations of them, and feedback on their answers."""

from typing import Any

from zhub.client.wire.answer import ENDED, Answer
from zhub.client.wire.training import ClassifiedRecord
from zhub.manifest import ANSWERS_FILE, Accuracy, Evaluation, FileEntry, Mixture, Origin


class EvaluationResults(Answer):
    """Mean reward of greedy answers with its 95 % interval; ``pass_at_k`` where answers were sampled as well."""

    mean: float
    low: float
    high: float
    n: int
    parse_failures: int
    pass_at_k: float | None


class EvaluationComparison(Answer):
    """Two models on the same rows: mean of the first less that of the other, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    verdict: str
    sentence: str


class OtherEvaluation(Answer):
    """Another model on the same suite; ``comparison`` once both have been measured."""

    id: str
    model: str
    status: str
    results: EvaluationResults | None
    comparison: EvaluationComparison | None


class EvaluationRecord(Answer):
    """One model measured on one suite. ``others`` is given for a single one only, not in lists."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    cluster: str
    model: str
    file: str | None
    suite: dict[str, Any]
    suite_digest: str
    results: EvaluationResults | None
    warnings: list[str]
    others: list[OtherEvaluation] = []

    @property
    def settled(self) -> bool:
        """Whether this and every other evaluation of the suite has ended."""
        return all(status in ENDED for status in (self.status, *(other.status for other in self.others)))


class FeedbackSummary(Answer):
    """How much feedback there is on a version; ``mean_score``, in [-1, 1], is None where there is none."""

    count: int
    mean_score: float | None


class GeneralPart(Answer):
    """The general suite, or one category of it: how many questions base and expert have right."""

    name: str
    base: Accuracy
    expert: Accuracy
    p_value: float
    verdict: str


class GeneralRecord(GeneralPart):
    """The whole general suite, in words and by category: what a version does better and worse beside its task."""

    sentence: str
    categories: list[GeneralPart]


class AnswerPairRecord(Answer):
    """What base and expert answered to one prompt; ``suite`` is ``test`` or ``general``.

    ``expected`` is None where the grader compares with no text, the answers where only likelihoods were compared.
    """

    suite: str
    category: str | None
    line: int
    change: str
    prompt: list[dict[str, str]]
    expected: str | None
    base_answer: str | None
    expert_answer: str | None
    base_reward: float
    expert_reward: float


class ExpertVersion(Answer):
    """One version of an expert; ``digest`` is the SHA-256 of its ``manifest.json``."""

    id: str
    created_at: int
    expert: str
    version: int
    base_model: str
    digest: str
    size_bytes: int
    job: str
    uri: str
    description: str | None = None
    tags: dict[str, str] = {}
    archived: bool = False
    lost_files: list[str] = []
    aliases: list[str] = []
    parent: str | None = None
    """The version of the project that its training began from."""
    classifies: list[ClassifiedRecord] = []
    """Of a classifier, the expert versions that it tells apart."""
    feedback: FeedbackSummary
    general: GeneralRecord | None = None
    """What it does better and worse beside its task; None where that was not measured."""
    manifest: dict[str, Any]

    def evaluation(self, split: str) -> Evaluation | None:
        """How base and expert did on the same rows of this split."""
        entries = [entry for entry in self.manifest["evaluations"] if entry["split"] == split]
        return Evaluation.model_validate(entries[0]) if entries else None

    @property
    def origin(self) -> Origin | None:
        """Where it comes from, if it was imported."""
        origin = self.manifest.get("origin")
        return Origin.model_validate(origin) if origin else None

    @property
    def mixture(self) -> Mixture | None:
        """Which versions were mixed, if it is the mixture of a few-shot search."""
        mixture = self.manifest.get("mixture")
        return Mixture.model_validate(mixture) if mixture else None

    @property
    def has_answers(self) -> bool:
        """Whether its training has kept what base and expert answered; trainings of earlier releases have not."""
        return any(file["name"] == ANSWERS_FILE for file in self.manifest["files"])


class ImportRecord(Answer):
    """An import of an expert that was made elsewhere; ``version`` once one has come of it."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    cluster: str
    name: str
    base_model: str
    base_check: str
    dataset: str | None
    version: ExpertVersion | None


class ExportRecord(Answer):
    """An export of a version; ``files`` and ``facts`` once it has succeeded."""

    id: str
    created_at: int
    finished_at: int | None
    status: str
    error: dict[str, Any] | None
    cluster: str
    model: str
    digest: str
    base_model: str
    format: str
    rank: int | None
    files: list[FileEntry] | None
    facts: dict[str, Any] | None


class ExpertRecord(Answer):
    """An expert, which is a line of versions."""

    id: str
    created_at: int
    name: str
    former_names: list[str]
    description: str | None
    tags: dict[str, str]
    archived: bool
    versions: int
    newest: str | None
    aliases: list[str]


class ChangeRecord(Answer):
    """A change of what is said of an expert or of one of its versions; of each field ``{"from": …, "to": …}``."""

    created_at: int
    subject: str
    by: str
    changes: dict[str, dict[str, Any]]


class FeedbackRecord(Answer):
    """How good one answer of a version was: ``score`` in [-1, 1]; ``reference`` is the right answer."""

    id: str
    created_at: int
    model: str
    completion_id: str | None = None
    """The stored completion whose answer it was."""
    messages: list[dict[str, str]]
    completion: str
    score: float
    reference: str | None
    comment: str | None


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
