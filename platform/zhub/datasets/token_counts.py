"""Rows with more tokens than the context of a base, counted by a job without torch, before anything trains on them.

Functions take a Session and never commit.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel as Schema
from pydantic import ConfigDict, Field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from zhub import states
from zhub.datasets.files import stored_file
from zhub.errors import LongRow, PromptTooLongError
from zhub.models import BaseModel, DatasetVersion, Job, TokenCount
from zhub.queue import jobs
from zhub.queue.attempts import Succeeded
from zhub.specs import BaseModelSource, CountTokensSpec


class TokenCountReport(Schema):
    """A worker's report. ``long_rows`` are the first ``(line, tokens)`` of the ``long_row_count``.

    ``tokenizer_warning`` is for people, where the base's tokenizer does not know the language of the rows.
    """

    model_config = ConfigDict(frozen=True)
    context_length: int | None
    long_row_count: Annotated[int, Field(ge=0)]
    long_rows: list[tuple[int, int]]
    tokenizer_warning: str | None = None


def request(session: Session, file: DatasetVersion, base: BaseModel) -> tuple[TokenCount, Job]:
    """The count of a validated file's tokens on a base, with its job: enqueued if there is none, or if that failed."""
    # Requests for one file take turns, so that nothing is counted twice.
    session.execute(select(func.pg_advisory_xact_lock(file.id.int & (2**63 - 1))))
    row = session.execute(
        select(TokenCount, Job)
        .join(Job, Job.id == TokenCount.job_id)
        .where(TokenCount.dataset_version_id == file.id, TokenCount.base_model_id == base.id)
    ).one_or_none()
    if row is not None and row.Job.state not in (states.FAILED, states.CANCELLED):
        return row.TokenCount, row.Job
    spec = CountTokensSpec(base=BaseModelSource.model_validate(base.source), file=stored_file(file))
    job = Job(
        org_id=file.org_id,
        project_id=file.project_id,
        kind="count_tokens",
        spec=spec.model_dump(mode="json"),
        base_model_id=base.id,
        dataset_version_id=file.id,
    )
    jobs.enqueue(session, job, f"Count of the tokens of {file.filename} on {base.name} enqueued.")
    session.refresh(job)
    if row is not None:
        session.execute(update(TokenCount).where(TokenCount.id == row.TokenCount.id).values(job_id=job.id))
        session.refresh(row.TokenCount)
        return row.TokenCount, job
    count = TokenCount(org_id=file.org_id, dataset_version_id=file.id, base_model_id=base.id, job_id=job.id)
    session.add(count)
    session.flush()
    return count, job


def finish(session: Session, job: Succeeded, result: Mapping[str, Any]) -> None:
    """Write what was counted, in the transaction that ends the job. Raises ValueError for a malformed report."""
    report = TokenCountReport.model_validate(result)
    session.execute(update(TokenCount).where(TokenCount.job_id == job.id).values(report.model_dump(mode="json")))


def long_rows_error(
    session: Session, base: BaseModel, training: DatasetVersion, validation: DatasetVersion | None
) -> PromptTooLongError | None:
    """The rows that were counted and are too long, as the training would name them; None where none is known."""
    ids = [file.id for file in (training, validation) if file is not None]
    of_files = TokenCount.dataset_version_id.in_(ids)
    statement = select(TokenCount).where(of_files, TokenCount.base_model_id == base.id, TokenCount.long_row_count > 0)
    counts = sorted(session.scalars(statement), key=lambda count: count.dataset_version_id != training.id)
    rows = [row for count in counts for row in _named(count, of_validation=count.dataset_version_id != training.id)]
    if not rows:
        return None
    limit, total = counts[0].context_length, sum(count.long_row_count or 0 for count in counts)
    assert limit is not None
    return PromptTooLongError(rows[0].line, rows[0].tokens, limit, rows, count=total)


def _named(count: TokenCount, *, of_validation: bool) -> Sequence[LongRow]:
    return [LongRow(line, tokens, in_validation_file=of_validation) for line, tokens in count.long_rows or []]
