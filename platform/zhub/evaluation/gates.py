"""Gates: what a version must pass to get an alias, and how that is decided once it has been measured.

Nothing here reads or writes a database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field

from zhub.evaluation.comparison import Comparison, compare
from zhub.graders import Grader, GraderJson
from zhub.graders.parsing import GraderReader, parse_grader
from zhub.registry.names import PROD

MAX_SUITES = 5

Rule = Literal["not_worse", "better"]


class Suite(Schema):
    """What to measure on: an evaluation's file and grader."""

    model_config = ConfigDict(extra="forbid")
    file: str
    grader: GraderJson
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=8192)] = 64
    min_mean: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The mean reward that the version must reach."""


class Gate(Schema):
    """What a version must pass to get the alias: ``rule`` on every suite, against the version that the alias points to.

    ``not_worse``: not significantly worse. ``better``: significantly better. Where the alias is new, the rule is
    applied against the base model. A version that is worse than its base model never passes.
    """

    model_config = ConfigDict(extra="forbid")
    alias: str = PROD
    rule: Rule = "not_worse"
    suites: Annotated[list[Suite], Field(min_length=1, max_length=MAX_SUITES)]
    cluster: str | None = None
    """Which workers measure, as in an evaluation; None: those that trained, where the gate came with a training."""


def read_graders(gate: Gate, *, within: str = "", read: GraderReader = parse_grader) -> list[Grader]:
    """The graders of a gate's suites, before a session begins; ``within`` is the gate's path in the request.

    Raises:
        InvalidRequestError: with the path of the field at fault.
    """
    return [read(suite.grader, param=f"{within}suites.{i}.grader") for i, suite in enumerate(gate.suites)]


@dataclass(frozen=True)
class MeasuredSuite:
    """The rewards on one suite: of the version, and of what it is compared with, each by its model's name.

    The first of ``others`` is the one that the rule is about; the base follows where that is not the base itself.
    """

    file: str
    min_mean: float | None
    mean: float
    rewards: tuple[float, ...]
    others: Sequence[tuple[str, tuple[float, ...]]]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """What a gate found on one suite."""

    file: str
    passed: bool
    sentences: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "passed": self.passed, "sentences": list(self.sentences)}


def finding(rule: Rule, name: str, suite: MeasuredSuite) -> Finding:
    """Compare the version ``name`` on one suite, and decide. Takes a tenth of a second for each of ``others``."""
    against = [(other, compare(suite.rewards, rewards)) for other, rewards in suite.others]
    passed, sentences = decide(rule, name, suite.mean, suite.min_mean, against)
    return Finding(suite.file, passed, [*sentences, *suite.warnings])


def decide(
    rule: Rule, name: str, mean: float, min_mean: float | None, against: Sequence[tuple[str, Comparison]]
) -> tuple[bool, list[str]]:
    """Whether a version passes on one suite, and the sentences that say why.

    ``against`` has the comparison that the rule is about first; that with the base follows where it is another one.
    """
    sentences = [comparison.sentence(name, other) for other, comparison in against]
    verdicts = [comparison.verdict for _, comparison in against]
    passed = verdicts[0] == "better" if rule == "better" else verdicts[0] != "worse"
    passed = passed and "worse" not in verdicts
    if min_mean is not None:
        sentences.append(f"Its mean reward is {mean:.3f}; the gate asks for {min_mean:.3f}.")
        passed = passed and mean >= min_mean
    return passed, sentences
