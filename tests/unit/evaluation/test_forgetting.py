"""What evaluations on the general suite are put into words as."""

from zhub.evaluation.forgetting import GENERAL, forgetting_of, split_of
from zhub.evaluation.statistics import accuracy, paired_p_value
from zhub.manifest import Evaluation


def evaluation(split: str, base: list[float], expert: list[float]) -> Evaluation:
    return Evaluation(split=split, base=accuracy(base), expert=accuracy(expert), p_value=paired_p_value(base, expert))


def right(count: int, n: int = 30) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def suite(**categories: tuple[int, int]) -> list[Evaluation]:
    """Evaluations of categories of 30 questions, each with how many of them base and expert have right."""
    base = [reward for before, _ in categories.values() for reward in right(before)]
    expert = [reward for _, after in categories.values() for reward in right(after)]
    of_categories = [evaluation(split_of(name), right(*[b]), right(*[e])) for name, (b, e) in categories.items()]
    return [evaluation("test", right(5), right(25)), evaluation(GENERAL, base, expert), *of_categories]


def test_what_fell_and_what_rose_is_named() -> None:
    forgetting = forgetting_of(suite(sums=(5, 25), plurals=(20, 2), capitals=(20, 20)))
    assert forgetting is not None
    assert forgetting.names("better") == ["sums"] and forgetting.names("worse") == ["plurals"]
    assert forgetting.sentence == (
        "Better at sums (+67 points), worse at plurals (-60 points); "
        "50.0 % → 52.2 % of 90 general questions are right (p = 0.87)."
    )


def test_a_change_that_chance_makes_is_not_named() -> None:
    forgetting = forgetting_of(suite(sums=(20, 19), plurals=(20, 21)))
    assert forgetting is not None and forgetting.whole.verdict == "inside the noise"
    assert forgetting.sentence.startswith("No category gained or lost beyond chance; 66.7 % → 66.7 % of 60")


def test_one_of_ten_categories_has_to_fall_further_than_one_alone() -> None:
    # 6 of 30 lost and none won: p = 0.03, which is certain enough for one category and not for one of ten.
    alone = forgetting_of(suite(sums=(20, 14)))
    among = forgetting_of(suite(sums=(20, 14), **{f"c{n}": (20, 20) for n in range(9)}))
    assert alone is not None and among is not None
    assert alone.names("worse") == ["sums"] and among.names("worse") == []


def test_a_small_loss_everywhere_is_a_loss_on_the_whole() -> None:
    forgetting = forgetting_of(suite(**{f"c{n}": (20, 18) for n in range(5)}))
    assert forgetting is not None and forgetting.names("worse") == []
    assert forgetting.whole.verdict == "worse"
    assert forgetting.sentence.startswith("Worse on the whole, in no category alone beyond chance")


def test_a_version_whose_suite_was_not_answered_has_no_forgetting() -> None:
    assert forgetting_of([evaluation("test", right(5), right(25))]) is None
