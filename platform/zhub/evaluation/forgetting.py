"""What a training cost or gave a base elsewhere: its evaluations on the general suite, put into words.

A version's manifest has one evaluation of the whole suite and one of each category. A category counts as better or
worse only where its p-value passes Holm's correction for so many categories (Holm, Scand. J. Statist. 6, 1979):
without it, ten categories that nothing touched would show a change in more than one version of three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zhub.evaluation.comparison import SIGNIFICANT, Verdict
from zhub.manifest import Evaluation

GENERAL = "general"
_CATEGORY = f"{GENERAL}/"


def split_of(category: str) -> str:
    """What the evaluation of a category is called in the manifest."""
    return f"{_CATEGORY}{category}"


@dataclass(frozen=True)
class Part:
    """The whole suite, or one category of it."""

    name: str
    evaluation: Evaluation
    verdict: Verdict

    @property
    def points(self) -> float:
        """How many percent points more the expert has right than the base."""
        return 100 * (self.evaluation.expert.mean - self.evaluation.base.mean)


@dataclass(frozen=True)
class Forgetting:
    """The general suite as base and expert answered it."""

    whole: Part
    categories: Sequence[Part]

    def names(self, verdict: Verdict) -> list[str]:
        """The categories with this verdict."""
        return [part.name for part in self.categories if part.verdict == verdict]

    @property
    def sentence(self) -> str:
        """For people: better at what, worse at what."""
        base, expert = self.whole.evaluation.base, self.whole.evaluation.expert
        figures = (
            f"{100 * base.mean:.1f} % → {100 * expert.mean:.1f} % of {base.n} general questions are right "
            f"(p = {self.whole.evaluation.p_value:.2g})"
        )
        changes = [
            f"{verdict} at {_listed(parts)}"
            for verdict in ("better", "worse")
            if (parts := [part for part in self.categories if part.verdict == verdict])
        ]
        if changes:
            said = ", ".join(changes)
        elif self.whole.verdict != "inside the noise":
            said = f"{self.whole.verdict} on the whole, in no category alone beyond chance"
        else:
            said = "no category gained or lost beyond chance"
        return f"{said[0].upper()}{said[1:]}; {figures}."


def forgetting_of(evaluations: Iterable[Evaluation]) -> Forgetting | None:
    """The general suite among a version's evaluations; None where it was not answered."""
    by_split = {evaluation.split: evaluation for evaluation in evaluations}
    if GENERAL not in by_split:
        return None
    whole = by_split[GENERAL]
    of_categories = {
        split.removeprefix(_CATEGORY): evaluation
        for split, evaluation in by_split.items()
        if split.startswith(_CATEGORY)
    }
    significant = _holm({name: evaluation.p_value for name, evaluation in of_categories.items()})
    return Forgetting(
        Part(GENERAL, whole, _verdict(whole, whole.p_value < SIGNIFICANT)),
        [
            Part(name, evaluation, _verdict(evaluation, name in significant))
            for name, evaluation in of_categories.items()
        ],
    )


def _holm(p_values: dict[str, float]) -> set[str]:
    """The names whose p-values stay below SIGNIFICANT when all of them are tested at once."""
    significant: set[str] = set()
    for name in sorted(p_values, key=lambda name: p_values[name]):
        if p_values[name] * (len(p_values) - len(significant)) >= SIGNIFICANT:
            break
        significant.add(name)
    return significant


def _verdict(evaluation: Evaluation, is_significant: bool) -> Verdict:
    if not is_significant:
        return "inside the noise"
    return "better" if evaluation.expert.mean > evaluation.base.mean else "worse"


def _listed(parts: Sequence[Part]) -> str:
    named = [f"{part.name} ({part.points:+.0f} points)" for part in parts]
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
