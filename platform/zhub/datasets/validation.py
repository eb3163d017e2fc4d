"""Validation of a dataset file: every row is read, and what is wrong is reported with its lines."""

from dataclasses import dataclass, field
from typing import BinaryIO

from zhub.datasets.conversion.foreign import foreign_content
from zhub.datasets.conversion.recognition import HEAD_BYTES
from zhub.datasets.rows import RowSyntaxError, is_blank, numbered_lines, parse_row, row_digest, value_digest
from zhub.errors import RowProblem

MAX_FILE_BYTES = 2 << 30

MAX_ROWS = 1_000_000

MAX_COLUMNS = 1000

FOREIGN_FORMAT = "foreign_format"
"""The problem of a file that holds no rows at all: it is about the file and not about its line."""

MAX_PROBLEMS = 100  # reported with their lines; the rest is counted


@dataclass
class Validation:
    """What one pass over a file found. ``ok`` decides between ``processed`` and ``error``."""

    rows: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    problem_count: int = 0
    duplicates: list[RowProblem] = field(default_factory=list)
    duplicate_count: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    rows_with_target: int = 0
    first_line_with_target: int | None = None
    first_line_without_target: int | None = None
    preferences: int = 0
    first_line_without_preference: int | None = None
    prompts: int = 0

    @property
    def ok(self) -> bool:
        return self.problem_count == 0

    def add_problem(self, line: int, code: str, message: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(RowProblem(line, code, message))


def validate(file: BinaryIO) -> Validation:
    """Check every line of a JSONL file and say what is wrong with which; of another file, what it is.

    Equal rows are reported, and no error. Never raises for bad content, and holds one line in memory at a time. A
    stream that cannot be rewound is taken for JSONL.
    """
    found = Validation()
    if file.seekable():
        if (foreign := foreign_content(file.read(HEAD_BYTES))) is not None:
            found.add_problem(1, FOREIGN_FORMAT, foreign)
            return found
        file.seek(0)
    seen_rows: dict[bytes, int] = {}
    seen_prompts: set[bytes] = set()
    for line, raw in numbered_lines(file):
        if is_blank(raw):
            continue
        if found.rows == MAX_ROWS:
            found.add_problem(line, "too_many_rows", f"a dataset has at most {MAX_ROWS:,} rows; split the file")
            break
        found.rows += 1
        try:
            row = parse_row(line, raw)
        except RowSyntaxError as exc:
            found.add_problem(line, exc.code, str(exc))
            continue
        digest = row_digest(row)
        first = seen_rows.setdefault(digest, line)
        if first != line:
            found.duplicate_count += 1
            if len(found.duplicates) < MAX_PROBLEMS:
                found.duplicates.append(RowProblem(line, "duplicate", f"the same row as line {first}"))
            continue
        seen_prompts.add(value_digest(row.prompt))
        for column in row.item:
            if column not in found.columns and len(found.columns) == MAX_COLUMNS:
                found.add_problem(line, "too_many_columns", f"a dataset has at most {MAX_COLUMNS:,} different columns")
                break
            found.columns[column] = found.columns.get(column, 0) + 1
        if row.target is not None:
            found.rows_with_target += 1
            found.first_line_with_target = found.first_line_with_target or line
        else:
            found.first_line_without_target = found.first_line_without_target or line
        if row.rejected is not None:
            found.preferences += 1
        else:
            found.first_line_without_preference = found.first_line_without_preference or line
    found.prompts = len(seen_prompts)
    if found.rows == 0:
        found.add_problem(1, "empty", "the file has no rows; put one JSON object on each line")
    return found
