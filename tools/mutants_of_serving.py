"""The guards that keep the answers of one replica from each other."""

from mutant import Mutant

SERVING = "workers/zhub_workers/serving"
ON_SCHEDULER, ON_LANE = ("tests/unit/serving/test_scheduler.py",), ("tests/unit/serving/test_lane.py",)

MUTANTS = (
    Mutant(
        "what was read for one expert is not found for another",
        f"{SERVING}/blocks.py",
        "known[-1] if known else salt",
        'known[-1] if known else b""',
        ON_SCHEDULER,
    ),
    Mutant(
        "a block that somebody uses is not given to another",
        f"{SERVING}/blocks.py",
        "            if self._users[block]:\n                continue\n",
        "",
        ON_SCHEDULER,
    ),
    Mutant(
        "who floods gives up a place to who has less than its share",
        f"{SERVING}/scheduler.py",
        "if held[org_id] >= share or count <= share:",
        "if count:",
        ON_SCHEDULER,
    ),
    Mutant(
        "who has asked for nothing has saved nothing up",
        f"{SERVING}/scheduler.py",
        "self._served[answer.org_id] = max(self._served[answer.org_id], least)",
        "pass",
        ON_SCHEDULER,
    ),
    Mutant(
        "a token sees no token after it",
        f"{SERVING}/paged_attention.py",
        "seen = columns <= self.positions",
        "seen = columns <= self.positions + 1",
        ON_LANE,
    ),
    Mutant(
        "an answer that is not finite leaves nothing behind",
        f"{SERVING}/lane.py",
        "self._runner.clear(self._scheduler.forget(choice.answer))",
        "self._scheduler.forget(choice.answer)",
        ON_LANE,
    ),
)
