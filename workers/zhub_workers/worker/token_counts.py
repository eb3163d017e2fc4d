"""The rows of a file that have more tokens than the context of a base: its tokenizer says so, without its weights."""

from itertools import islice
from typing import Any

from zhub.datasets.rows import Row, all_rows
from zhub.datasets.token_counts import TokenCountReport
from zhub.errors import InvalidRequestError, TrainingError
from zhub.errors.training import MAX_ROWS_NAMED
from zhub.specs import CountTokensSpec
from zhub.storage.object_store import fetch, open_store
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.evaluation.tokenizer_fit import ROWS_READ, tokenizer_fit
from zhub_workers.model.base_model import Prompts, load_prompts, render_prompt
from zhub_workers.model.model_cache import base_directory

ROWS_BETWEEN_STOP_CHECKS = 100


def run(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Count the tokens of each row, as a training does; warn where the tokenizer does not know their language.

    Raises:
        TrainingError: a row that the chat template refuses.
    """
    spec = CountTokensSpec.model_validate(attempt.spec)
    store = open_store(attempt.store_url)
    path = fetch(store, spec.file.key, attempt.cache_dir / "datasets" / spec.file.sha256, sha256=spec.file.sha256)
    prompts = load_prompts(base_directory(spec.base, store, attempt.cache_dir, with_weights=False), spec.base.name)
    count = 0
    named: list[tuple[int, int]] = []
    with path.open("rb") as file:
        for index, row in enumerate(all_rows(file)):
            if index % ROWS_BETWEEN_STOP_CHECKS == 0:
                context.raise_if_stopped()
            tokens = row_tokens(prompts, row)
            if prompts.context_length is not None and tokens > prompts.context_length:
                count += 1
                if len(named) < MAX_ROWS_NAMED:
                    named.append((row.line, tokens))
        file.seek(0)
        fit = tokenizer_fit(prompts.tokenizer, islice(all_rows(file), ROWS_READ))
    warning = None
    if fit is not None and fit.is_foreign:
        warning = fit.warning(spec.base.name, spec.file.name, context_length=prompts.context_length)
    report = TokenCountReport(
        context_length=prompts.context_length, long_row_count=count, long_rows=named, tokenizer_warning=warning
    )
    return report.model_dump(mode="json")


def row_tokens(prompts: Prompts, row: Row) -> int:
    """How many tokens of context a row takes with its longest answer, as ``EncodedRow.tokens`` counts them."""
    try:
        prompt = len(render_prompt(prompts, row.prompt))
    except InvalidRequestError as exc:
        raise TrainingError(f"line {row.line}: {exc}") from exc
    answers = [answer for answer in (row.target, row.rejected) if answer is not None]
    # Each answer ends with the end-of-sequence token; one that is still to come has at least one token.
    lengths = [len(prompts.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in answers]
    return prompt + max([1, *lengths])
