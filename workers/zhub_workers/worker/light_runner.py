"""What a worker without torch does: the validation of dataset files, the count of their tokens, and the rows of a
classifier."""

from typing import Any

from zhub.datasets.files import validation_report
from zhub.datasets.validation import validate
from zhub.specs import ValidateSpec
from zhub.storage.object_store import fetch, open_store
from zhub_workers.attempts.attempt import Attempt, AttemptContext
from zhub_workers.worker import classification_rows


def run(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Run the attempt that ``attempt.spec`` describes, and return what its job's row needs."""
    if attempt.spec["kind"] == "count_tokens":
        # Here, because it imports transformers, which most attempts of this worker do not need.
        from zhub_workers.worker import token_counts

        return token_counts.run(attempt, context)
    if attempt.spec["kind"] == "classification_rows":
        return classification_rows.run(attempt, context)
    return _validate(attempt, context)


def _validate(attempt: Attempt, context: AttemptContext) -> dict[str, Any]:
    """Check every row of a dataset file; what is wrong with it is a result, not a failure."""
    file = ValidateSpec.model_validate(attempt.spec).file
    path = attempt.cache_dir / "datasets" / file.sha256
    fetch(open_store(attempt.store_url), file.key, path, sha256=file.sha256)
    context.progressed()
    with path.open("rb") as content:
        return {"validation": validation_report(validate(content))}
