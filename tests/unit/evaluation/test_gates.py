"""What a gate lets pass, by the comparisons on one suite."""

import pytest

from zhub.evaluation.comparison import Comparison
from zhub.evaluation.gates import Rule, decide


def compared(difference: float, p_value: float) -> Comparison:
    low, high = sorted((difference * 0.5, difference * 1.5)) if p_value < 0.05 else (-1.0, 1.0)
    return Comparison(difference, low, high, p_value, 40)


BETTER, NOISE, WORSE = compared(0.5, 0.001), compared(0.01, 0.8), compared(-0.5, 0.001)


@pytest.mark.parametrize(
    ("rule", "standing", "base", "minimum", "passed"),
    [
        ("not_worse", BETTER, BETTER, None, True),
        ("not_worse", NOISE, BETTER, None, True),
        ("not_worse", WORSE, BETTER, None, False),
        ("not_worse", NOISE, WORSE, None, False),
        ("better", BETTER, BETTER, None, True),
        ("better", NOISE, BETTER, None, False),
        ("better", BETTER, WORSE, None, False),
        ("not_worse", BETTER, BETTER, 0.8, True),
        ("not_worse", BETTER, BETTER, 0.81, False),
    ],
)
def test_what_a_gate_lets_pass(
    rule: Rule, standing: Comparison, base: Comparison, minimum: float | None, passed: bool
) -> None:
    against = [("old", standing), ("base", base)]
    found, sentences = decide(rule, "new", 0.8, minimum, against)
    assert found == passed
    assert len(sentences) == 2 + (minimum is not None)
