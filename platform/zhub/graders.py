"""Graders: plain functions from a sampled answer and its row to a reward in [0, 1].

The wire form is OpenAI's grader object. Templates ``{{sample.output_text}}`` and ``{{item.<column>}}``
are filled in per sample.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from zhub.errors import InvalidRequestError, RewardError

PLACEHOLDER = re.compile(r"\{\{\s*([a-z_]+)((?:\.[^{}.\s]+)*)\s*\}\}")


class StringCheckGrader(BaseModel):
    """1 when the filled-in ``input`` stands in ``operation`` to the filled-in ``reference``, else 0.

    ``eq`` and ``ne`` compare exactly; ``like`` asks whether the input contains the reference,
    ``ilike`` the same without regard to case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["string_check"]
    name: str
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


Grader = StringCheckGrader


def grade(grader: Grader, output_text: str, item: Mapping[str, Any]) -> float:
    """Return the reward of one answer, in [0, 1].

    Raises:
        RewardError: a template names a column that this row lacks.
    """
    found = fill(grader, grader.input, output_text, item)
    wanted = fill(grader, grader.reference, output_text, item)
    match grader.operation:
        case "eq":
            return float(found == wanted)
        case "ne":
            return float(found != wanted)
        case "like":
            return float(wanted in found)
        case "ilike":
            return float(wanted.casefold() in found.casefold())


def fill(grader: Grader, template: str, output_text: str, item: Mapping[str, Any]) -> str:
    """Replace the template's placeholders by this sample's and this row's values."""

    def value(match: re.Match[str]) -> str:
        root, path = match[1], match[2].split(".")[1:]
        if root == "sample":
            return output_text
        found: Any = item
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                raise RewardError(grader.name, f"the row has no column 'item.{'.'.join(path)}'")
            found = found[key]
        return found if isinstance(found, str) else _text(found)

    return PLACEHOLDER.sub(value, template)


def check_templates(grader: Grader, columns: Mapping[str, int], rows: int, *, param: str) -> None:
    """Refuse a grader whose templates cannot be filled in on every row of the dataset.

    ``columns`` counts in how many of the ``rows`` each column occurs.

    Raises:
        InvalidRequestError: names the field, the placeholder, and the columns that there are.
    """
    for field in ("input", "reference"):
        template: str = getattr(grader, field)
        if "{{" in PLACEHOLDER.sub("", template):
            raise InvalidRequestError(
                f"Grader '{grader.name}': cannot read the template {template!r}. "
                "Use {{sample.output_text}} and {{item.<column>}}.",
                param=f"{param}.{field}",
                code="invalid_grader",
            )
        for match in PLACEHOLDER.finditer(template):
            _check_placeholder(grader, match, columns, rows, f"{param}.{field}")
    if not any(match[1] == "sample" for match in PLACEHOLDER.finditer(grader.input + grader.reference)):
        raise InvalidRequestError(
            f"Grader '{grader.name}' never looks at the answer: use {{{{sample.output_text}}}} in its input.",
            param=f"{param}.input",
            code="invalid_grader",
        )


def _check_placeholder(grader: Grader, match: re.Match[str], columns: Mapping[str, int], rows: int, param: str) -> None:
    root, path = match[1], match[2].split(".")[1:]
    if root == "sample" and path == ["output_text"]:
        return
    if root != "item" or not path:
        raise InvalidRequestError(
            f"Grader '{grader.name}': unknown placeholder {match[0]}. "
            "Use {{sample.output_text}} or {{item.<column>}}.",
            param=param,
            code="invalid_grader",
        )
    present = columns.get(path[0], 0)
    if present < rows:
        have = ", ".join(sorted(columns)) or "none"
        missing = "no row has" if present == 0 else f"{rows - present} of {rows} rows lack"
        raise InvalidRequestError(
            f"Grader '{grader.name}' needs the column '{path[0]}', which {missing}. Columns found: {have}.",
            param=param,
            code="invalid_grader",
        )


def _text(value: object) -> str:
    """Numbers and booleans as JSON writes them, so that 3 in a row compares equal to the answer "3"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return str(value)
