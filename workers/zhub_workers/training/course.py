"""The course of reinforcement: whether the policy still explores, and whether it has collapsed.

A collapse feeds itself: a policy that gives one answer to everything, or none that can be read, gets equal rewards,
and equal rewards teach nothing. So the rewards and the entropy of each step's answers are compared with those of the
best steps so far, and two steps in a row that are far worse are called a collapse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

STEPS_TO_COLLAPSE = 2
RECENT = 0.5  # weight of the newest step in the running mean of rewards
REWARD_SHARE = 0.5  # of the best mean reward: less is a collapse, if chance does not explain it
DEVIATIONS = 3.0  # of the mean of a step's groups
DEAD_ENTROPY, WILD_ENTROPY = 0.1, 2.0  # times the first step's
UNREAD_RISE = 0.5
ENTROPY_FLOOR = 0.2  # times the first step's: below it exploration is rewarded more from step to step
EXPLORATION_STEP, MAX_EXPLORATION = 0.005, 0.05
MAX_ROLLBACKS = 3


@dataclass(frozen=True)
class Verdict:
    """On a step's answers: whether they are the best so far, or what has collapsed, in words."""

    is_best: bool = False
    collapse: str | None = None


@dataclass
class Course:
    """What is known of the steps so far. All numbers, so that a state can be resumed.

    ``rate`` is the share of the ceiling that the learning rate has come to, ``caution`` the share of ``step_kl`` that
    a step may still cause. ``recent`` and ``best`` are running means of the rewards, ``best_error`` the standard error
    of a step's mean then. ``entropy`` is that of a token in the last step that was scored, in nats.
    """

    rate: float = 1.0
    caution: float = 1.0
    exploration: float = 0.0
    entropy: float = math.nan
    first_entropy: float = math.nan
    first_unread: float = math.nan
    recent: float = math.nan
    best: float = -math.inf
    best_error: float = 0.0
    bad_steps: int = 0
    rollbacks: int = 0

    def note_answers(self, rewards: Sequence[Sequence[float]], unread: float) -> Verdict:
        """Take in the rewards of a step's groups of answers, and the share that could not be read."""
        means = [fmean(group) for group in rewards]
        mean = fmean(means)
        if math.isnan(self.first_unread):
            self.first_unread, self.recent = unread, mean
        self.recent = RECENT * mean + (1 - RECENT) * self.recent
        problem = self._problem(mean, all(min(group) == max(group) for group in rewards), unread)
        self.bad_steps = self.bad_steps + 1 if problem else 0
        if problem:
            return Verdict(collapse=problem if self.bad_steps >= STEPS_TO_COLLAPSE else None)
        is_best = self.recent > self.best
        if is_best:
            self.best, self.best_error = self.recent, _standard_error(means)
        return Verdict(is_best)

    def note_entropy(self, entropy: float) -> None:
        """Take in the entropy of a token, and set the coefficient of exploration for the next step."""
        if math.isnan(self.first_entropy):
            self.first_entropy = entropy
        self.entropy = entropy
        step = EXPLORATION_STEP if entropy < ENTROPY_FLOOR * self.first_entropy else -EXPLORATION_STEP
        self.exploration = min(MAX_EXPLORATION, max(0.0, self.exploration + step))

    def roll_back(self) -> None:
        """Go on from the best state with shorter steps."""
        self.rollbacks += 1
        self.bad_steps = 0
        self.recent = self.best
        self.caution /= 4  # half the length
        self.rate /= 2
        self.entropy = self.first_entropy
        self.exploration = max(self.exploration, EXPLORATION_STEP)

    def _problem(self, mean: float, alike: bool, unread: float) -> str | None:
        if mean < min(REWARD_SHARE * self.best, self.best - DEVIATIONS * self.best_error):
            return f"the mean reward fell from {self.best:.3f} to {mean:.3f}"
        if unread > self.first_unread + UNREAD_RISE:
            return f"{unread:.0%} of the answers cannot be read, {self.first_unread:.0%} at first"
        if alike and mean < 1 and self.entropy < DEAD_ENTROPY * self.first_entropy:
            return (
                f"all answers to a prompt are alike: entropy {self.entropy:.3f} nats, {self.first_entropy:.3f} at first"
            )
        if self.entropy > WILD_ENTROPY * self.first_entropy and mean < self.best:
            return (
                f"the answers are ever more random: entropy {self.entropy:.2f} nats, {self.first_entropy:.2f} at first"
            )
        return None


def _standard_error(means: Sequence[float]) -> float:
    if len(means) < 2:
        return math.inf
    return stdev(means) / math.sqrt(len(means))
