"""How long rows are on a base: as the training counts them, without the weights."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhub.datasets.rows import all_rows
from zhub.errors import TrainingError
from zhub.manifest import sha256_file
from zhub.specs import BaseModelSource, CountTokensSpec, StoredFile
from zhub.storage.directory import DirectoryStore
from zhub.storage.object_store import put_path
from zhub_workers.attempts.attempt import Attempt, AttemptContext, AttemptKey, AttemptStoppedError
from zhub_workers.attempts.log import AttemptLog
from zhub_workers.evaluation.grading import render_rows
from zhub_workers.evaluation.tokenizer_fit import TokenizerFit
from zhub_workers.model.base_model import load_base_model, load_prompts
from zhub_workers.worker import light_runner, token_counts
from zhub_workers.worker.token_counts import row_tokens

CONTEXT = 64


def user(text: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **columns}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ROWS = [
    user("short", answer="x"),
    # <user>, the text, <assistant>, and one token of an answer.
    user("x" * (CONTEXT - 3)),
    user("x" * (CONTEXT - 2)),
    {"messages": [*user("x")["messages"], answer("y" * CONTEXT)]},
    {
        "input": user("x"),
        "preferred_output": [answer("y")],
        "non_preferred_output": [answer("y" * CONTEXT)],
    },
]


def content(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def count(model_directory: Callable[[str], Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Count the tokens of rows as the light worker does; the store has the base, but for its weights."""
    store, files = DirectoryStore(tmp_path / "store"), []
    for path in sorted(model_directory("llama").iterdir()):
        if path.suffix != ".safetensors":
            put_path(store, f"base/{path.name}", path)
        size = path.stat().st_size
        files.append(StoredFile(name=path.name, key=f"base/{path.name}", sha256=sha256_file(path), size_bytes=size))

    def run(rows: list[dict[str, Any]], context: AttemptContext | None = None) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content(rows))
        put_path(store, "rows", path)
        file = StoredFile(name="rows.jsonl", key="rows", sha256=sha256_file(path), size_bytes=path.stat().st_size)
        spec = CountTokensSpec(base=BaseModelSource(name="tiny", files=files), file=file)
        attempt = Attempt(
            AttemptKey(uuid.uuid4(), 1),
            uuid.uuid4(),
            spec.model_dump(mode="json"),
            store.root.as_uri(),
            tmp_path / "cache",
            None,
        )
        return light_runner.run(attempt, context or AttemptContext(AttemptLog(1)))

    return run


def test_rows_with_more_tokens_than_the_context_are_named_with_their_lines(count: Callable[..., Any]) -> None:
    assert count(ROWS) == {
        "context_length": CONTEXT,
        "long_row_count": 3,
        "long_rows": [[3, CONTEXT + 1], [4, CONTEXT + 4], [5, CONTEXT + 4]],
        "tokenizer_warning": None,
    }


def test_a_language_that_the_tokenizer_does_not_know_is_warned_of(
    count: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_counts, "tokenizer_fit", lambda _tokenizer, _rows: TokenizerFit(3.2, 12.9, "Thai"))
    warning = count(ROWS)["tokenizer_warning"]
    assert warning.startswith(
        "The tokenizer of 'tiny' splits 'rows.jsonl', mostly Thai letters, into 3.2 tokens a letter"
    )


def test_all_long_rows_are_counted_and_the_first_named(count: Callable[..., Any]) -> None:
    found = count([user("x" * (CONTEXT + n)) for n in range(250)])
    assert (found["long_row_count"], len(found["long_rows"])) == (250, 200)


def test_a_row_is_as_long_as_the_training_finds_it(model_directory: Callable[[str], Path]) -> None:
    base, prompts = load_base_model(model_directory("llama")), load_prompts(model_directory("llama"))
    assert prompts.context_length == base.context_length == CONTEXT
    rows = list(all_rows(io.BytesIO(content(ROWS))))
    encoded = render_rows(base, rows, with_target=False, should_stop=lambda: False)[:3]
    encoded += render_rows(base, rows[3:], with_target=True, should_stop=lambda: False)
    assert [row_tokens(prompts, row) for row in rows] == [row.tokens for row in encoded]


def test_a_row_that_the_chat_template_refuses_is_named(count: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("zhub.datasets.rows.ROLES", ("user", "tool"))
    with pytest.raises(TrainingError, match="line 2: .*no tools here"):
        count([user("x"), {"messages": [{"role": "tool", "content": "x"}]}])


def test_a_count_stops_when_it_is_told_to(count: Callable[..., Any]) -> None:
    context = AttemptContext(AttemptLog(1))
    context.request_stop()
    with pytest.raises(AttemptStoppedError):
        count(ROWS, context)
