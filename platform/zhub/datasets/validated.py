"""Files that passed their validation: what a training or an evaluation may read, and what is known of their rows."""

import uuid
from collections.abc import Mapping

from sqlalchemy.orm import Session

from zhub.datasets import files
from zhub.errors import InvalidDatasetError, NotReadyError, RowProblem
from zhub.ids import parse_id
from zhub.models import DatasetVersion


def require_validated(session: Session, project_id: uuid.UUID, file_id: str, *, param: str) -> DatasetVersion:
    """The project's file with this public id; ``param`` is the field of the request that names it.

    Raises:
        NotFoundError: the project has no such file.
        NotReadyError: its validation has not ended.
        InvalidDatasetError: it did not pass its validation; with its problems.
    """
    version = files.get(session, project_id, parse_id("file", file_id))
    if version.status == "uploaded":
        raise NotReadyError(f"{param}: '{file_id}' is still being validated. Wait until its status is 'processed'.")
    if version.status == "error":
        problems = [RowProblem(**problem) for problem in (version.validation or {}).get("problems", [])]
        raise InvalidDatasetError(
            f"{param}: '{version.filename}' did not pass validation.\n{version.status_details}", problems, param=param
        )
    return version


def all_rows(version: DatasetVersion) -> int:
    """How many rows a validated file has, those included that repeat others."""
    assert version.validation is not None
    return int(version.validation["rows"])


def distinct_rows(version: DatasetVersion) -> int:
    """How many rows of a validated file differ."""
    assert version.validation is not None
    return int(version.validation["rows"] - version.validation["duplicate_count"])


def columns(version: DatasetVersion) -> Mapping[str, int]:
    """In how many of the distinct rows of a validated file each column occurs."""
    assert version.validation is not None
    counts: Mapping[str, int] = version.validation["columns"]
    return counts
