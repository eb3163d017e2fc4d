"""Who is read next, played through in random histories with a model that only remembers what lies in which block."""

import random
from collections import defaultdict

import pytest

from zhub_workers.serving.blocks import BLOCK_TOKENS, Blocks
from zhub_workers.serving.scheduler import Answer, Part, Scheduler

PROMPT_TOKENS = 24


class Memory:
    """Remembers each token that was written to a block, with what it was read after, as keys and values would."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cells: dict[tuple[int, int], int] = {}
        self.steps = 0
        self.answers: list[Answer] = []
        self.shown: dict[Answer, list[int]] = defaultdict(list)  # the steps in which each got a token

    def ask(self, org_id: str, prompt: list[int], new_tokens: int, salt: bytes = b"") -> Answer:
        answer = Answer(org_id, salt, list(prompt), len(prompt) + new_tokens)
        self.answers.append(answer)
        self.scheduler.add(answer)
        return answer

    def step(self) -> list[Part]:
        parts = self.scheduler.plan(PROMPT_TOKENS)
        assert len({part.answer for part in parts}) == len(parts)
        for part in parts:
            answer, end = part.answer, part.answer.read + part.count
            assert end <= len(answer.tokens) and end <= len(answer.blocks) * BLOCK_TOKENS
            for position in range(answer.read):
                assert self._cell(answer, position) == _state(answer, position), "it would attend to another's keys"
            for position in range(answer.read, end):
                self.cells[self._at(answer, position)] = _state(answer, position)
        lasts = [part.answer for part in parts if part.is_last]
        self.scheduler.done(parts)
        for answer in lasts:
            answer.tokens.append(_state(answer, len(answer.tokens) - 1) % 1000)
            self.shown[answer].append(self.steps)
            if len(answer.tokens) == answer.max_tokens:
                self.scheduler.end(answer)
        self.steps += 1
        return parts

    def play(self) -> None:
        while len(self.scheduler):
            assert self.step(), "answers wait, and nothing is read"
            assert self.steps < 20_000

    def _at(self, answer: Answer, position: int) -> tuple[int, int]:
        return answer.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS

    def _cell(self, answer: Answer, position: int) -> int | None:
        return self.cells.get(self._at(answer, position))


def _state(answer: Answer, position: int) -> int:
    """What keys at a position depend on: all tokens up to it, and whom they are read for."""
    return hash((answer.salt, *answer.tokens[: position + 1]))


def memory(blocks: int, *, places: int = 8, divided: bool = True) -> Memory:
    return Memory(Scheduler(Blocks(blocks, shared=True), places=places, divided=divided))


@pytest.mark.parametrize("seed", range(40))
def test_every_answer_ends_as_it_would_alone_whatever_comes_beside_it(seed: int) -> None:
    rng = random.Random(seed)
    together = memory(rng.choice([9, 16, 40]), places=rng.choice([2, 5, 16]), divided=rng.random() < 0.7)
    systems = [[rng.randrange(50) for _ in range(rng.choice([3, 33]))] for _ in range(3)]
    cancelled: set[Answer] = set()
    for _ in range(30):
        prompt = rng.choice(systems) + [rng.randrange(50) for _ in range(rng.randrange(1, 60))]
        together.ask(rng.choice("abc"), prompt, rng.randrange(1, 40), rng.choice([b"base", b"expert"]))
        for _ in range(rng.randrange(4)):
            together.step()
        if rng.random() < 0.1:
            answer = rng.choice(together.answers)
            together.scheduler.end(answer)
            cancelled.add(answer)
    together.play()
    for answer in set(together.answers) - cancelled:
        alone = memory(200)
        length = answer.max_tokens - len(together.shown[answer])
        same = alone.ask("", answer.tokens[:length], answer.max_tokens - length, answer.salt)
        alone.play()
        assert answer.tokens == same.tokens


def test_every_block_can_be_taken_again_once_all_have_ended() -> None:
    blocks = Blocks(12, shared=True)
    played = Memory(Scheduler(blocks, places=4))
    for number in range(30):
        played.ask("a", list(range(number, number + 40)), 20)
    played.play()
    assert blocks.available == 12


def test_a_long_prompt_delays_no_next_token() -> None:
    played = memory(200)
    first = played.ask("a", [1, 2, 3], 60)
    played.step()
    played.ask("b", list(range(1000)), 1)
    for _ in range(40):
        parts = played.step()
        assert sum(part.count for part in parts if part.answer is not first) <= PROMPT_TOKENS
    assert played.shown[first] == list(range(41))


def test_a_short_answer_does_not_wait_for_a_long_one() -> None:
    played = memory(200)
    played.ask("a", [1, 2, 3], 500)
    played.step()
    short = played.ask("a", [4, 5], 4)
    played.play()
    assert played.shown[short] == [1, 2, 3, 4]


def test_the_next_turn_of_a_conversation_is_read_from_its_end_on() -> None:
    played = memory(200)
    first = played.ask("a", list(range(300)), 20)
    played.play()
    second = played.ask("a", [*first.tokens, 7, 8, 9], 5)
    played.play()
    assert second.cached is not None and second.cached >= 0.9 * len(first.tokens)


def test_nothing_is_found_again_for_another_expert() -> None:
    played = memory(200)
    played.ask("a", list(range(300)), 1, b"one")
    played.play()
    other = played.ask("a", list(range(300)), 1, b"another")
    played.play()
    assert other.cached == 0


def test_equal_prompts_that_come_at_once_are_read_once() -> None:
    played = memory(200)
    answers = [played.ask("a", list(range(160)), 3) for _ in range(4)]
    read = 0
    while len(played.scheduler):
        read += sum(part.count for part in played.step() if part.answer.read <= 160)
    assert read < 160 + 3 * (BLOCK_TOKENS + 3) + 3
    assert [answer.cached for answer in answers] == [0, 144, 144, 144]


def test_what_is_not_there_is_given_back_by_the_answer_that_came_last_and_read_again() -> None:
    played = memory(6)
    first, last = played.ask("a", [1] * 30, 50), played.ask("a", [2] * 30, 50)
    played.play()
    assert played.shown[first] == list(range(played.shown[first][0], played.shown[first][0] + 50))
    assert len(played.shown[last]) == 50 and played.shown[last][-1] > played.shown[first][-1]


def test_who_asks_little_does_not_wait_for_who_floods() -> None:
    played = memory(400, places=8)
    for number in range(300):
        played.ask("flood", [number] * 20, 60)
    for _ in range(20):
        played.step()
    polite = played.ask("polite", [7] * 20, 10)
    began = played.steps
    played.play()
    assert played.shown[polite][0] <= began + 2
    assert len(played.shown[polite]) == 10 and played.shown[polite][-1] <= began + 12


def test_what_an_answer_read_itself_before_it_gave_its_place_up_was_not_there_when_it_came() -> None:
    played = memory(400, places=8)
    flood = [played.ask("flood", [number] * 40, 60) for number in range(8)]
    for _ in range(30):
        played.step()
    played.ask("polite", [7] * 20, 10)
    played.step()
    (stopped,) = (answer for answer in flood if answer not in played.scheduler.running)
    played.play()
    assert [answer.cached for answer in flood] == [0] * 8
    assert len(played.shown[stopped]) == 60


def test_who_has_not_asked_for_long_has_saved_nothing_up() -> None:
    played = memory(12, places=64)  # it is memory that they share
    for number in range(60):
        played.ask("busy", [number] * 20, 20)
    for _ in range(150):
        played.step()
    late = [played.ask("late", [number] * 20, 20) for number in range(60)]
    busy = [answer for answer in played.answers if answer not in late]
    before = sum(len(played.shown[answer]) for answer in busy)
    for _ in range(100):
        played.step()
    of_busy = sum(len(played.shown[answer]) for answer in busy) - before
    of_late = sum(len(played.shown[answer]) for answer in late)
    assert 0.5 < of_busy / of_late < 2


def test_a_failed_answers_keys_are_found_by_nobody() -> None:
    played = memory(200)
    broken = played.ask("a", list(range(100)), 50)
    for _ in range(8):
        played.step()
    blocks = list(broken.blocks)
    assert played.scheduler.forget(broken) == blocks
    again = played.ask("a", list(range(100)), 5)
    played.play()
    assert again.cached == 0
