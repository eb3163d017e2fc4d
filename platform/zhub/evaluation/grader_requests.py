"""Check the grader of a request against the database, after ``parse_grader`` has read it: the same checks for all."""

import uuid
from collections.abc import Iterable, Sequence

from sqlalchemy.orm import Session

from zhub.datasets import validated
from zhub.errors import InvalidRequestError, NotFoundError
from zhub.graders.templates import check_templates
from zhub.graders.types import Grader, ScoreModelGrader, leaves
from zhub.models import DatasetVersion
from zhub.registry import base_models


def check_grader(
    session: Session,
    org_id: uuid.UUID,
    grader: Grader,
    *,
    param: str,
    bases: Iterable[str] = (),
    files: Sequence[DatasetVersion] = (),
) -> None:
    """Check a grader's judges, and its templates against the validated files whose answers it shall grade.

    A judge must be a base model. ``bases`` are the base models of the jobs that will grade; a job can ask only its own,
    so a judge must be the only one of them. Without a job, any base model may judge.

    Raises:
        InvalidRequestError: with the path of the field at fault, which begins with ``param``.
    """
    for judge_param, judge in leaves(grader, param):
        if isinstance(judge, ScoreModelGrader):
            _check_judge(session, org_id, judge, bases, f"{judge_param}.model")
    for file in files:
        check_templates(grader, validated.columns(file), validated.distinct_rows(file), param=param)


def _check_judge(
    session: Session, org_id: uuid.UUID, judge: ScoreModelGrader, bases: Iterable[str], param: str
) -> None:
    try:
        base_models.get(session, org_id, judge.model)
    except NotFoundError as exc:
        raise InvalidRequestError(
            f"Grader '{judge.name}': a judge is a base model. {exc}", param=param, code="invalid_grader"
        ) from exc
    for base in bases:
        if judge.model != base:
            raise InvalidRequestError(
                f"Grader '{judge.name}': the judge is '{judge.model}', and this job works with '{base}'. A job can "
                "only ask its own base model.",
                param=param,
                code="invalid_grader",
            )
