"""Answers about experts, evaluations of them, and feedback on their answers."""

from typing import Annotated, Any

from pydantic import Field

from zhub.client.wire.answer import ENDED, Answer
from zhub.client.wire.strengths import Strength
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
    state: str = "ready"
    """``deprecated`` and ``yanked`` have a reason, a successor, or both. Older servers do not tell it."""
    state_reason: str | None = None
    successor: str | None = None
    damage: str | None = None
    """What the last check of its files found wrong with them."""
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


class ConfigurationDifference(Answer):
    """One thing that differs in how two versions were made; None on the side that does not have it."""

    what: str
    model: Any
    against: Any


class HeldOutPair(Answer):
    """What two versions got on the rows that their trainings held out; only ``same_rows`` can be compared."""

    split: str
    same_rows: bool
    model: Accuracy | None
    against: Accuracy | None


class MeasuredVersion(Answer):
    evaluation: str
    results: EvaluationResults


class ComparedSuite(Answer):
    """Two versions on one suite; ``better_rows`` and ``worse_rows`` are places in it from 0, the first of them all."""

    suite_digest: str
    suite: dict[str, Any]
    model: MeasuredVersion
    against: MeasuredVersion
    comparison: EvaluationComparison
    better: int
    worse: int
    better_rows: list[int]
    worse_rows: list[int]


class LayerComparison(Answer):
    """One layer of two changes; None: what is in no layer. ``share``: of the difference, of the weights' norm."""

    layer: int | None
    matrices: int
    cosine: float | None
    share: float


class ComparedChanges(Answer):
    """How much each of two versions changes, and how alike; without ``layers`` where their kinds have no z."""

    model: Strength | None
    against: Strength | None
    cosine: float | None
    layers: list[LayerComparison]


class VersionComparison(Answer):
    """Two versions side by side; ``z_missing`` says why something of ``z`` is not known."""

    model: str
    against: str
    configuration: list[ConfigurationDifference]
    held_out: list[HeldOutPair]
    suites: list[ComparedSuite]
    z: ComparedChanges | None
    z_missing: str | None


class LineageNode(Answer):
    """One thing of a lineage; ``kind`` is file, fine-tuning job, attempt, version, evaluation, alias, release, …"""

    id: str
    kind: str
    name: str
    state: str
    digest: str | None


class LineageStep(Answer):
    """``to`` came of ``origin``, or uses it."""

    origin: Annotated[str, Field(alias="from")]
    to: str
    relation: str


class LineageRecord(Answer):
    """Where something comes from and what came of it, as nodes and edges."""

    id: str
    nodes: list[LineageNode]
    edges: list[LineageStep]
    truncated: bool


class VerifiedFile(Answer):
    """A file of a version: whole, of the right size, missing or changed."""

    name: str
    state: str


class VerificationRecord(Answer):
    """What was found of a version's signature and files; ``problems`` name what is wrong."""

    id: str
    verified: bool
    signed: bool
    files: list[VerifiedFile]
    problems: list[str]


class NeedRecord(Answer):
    """One thing that needs a version: ``sentence`` says what, and what to do about it."""

    id: str
    kind: str
    needed: str
    sentence: str


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
