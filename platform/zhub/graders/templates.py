"""Templates: ``{{sample.output_text}}``, ``{{sample.output_json.<key>}}`` and ``{{item.<column>}}``."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from zhub.errors import InvalidRequestError, RewardError
from zhub.graders.limits import FILLED_CHARACTERS, JUDGE_MESSAGES, TEMPLATE_CHARACTERS
from zhub.graders.samples import Sample
from zhub.graders.types import CodeTestsGrader, Grader, PythonGrader, ScoreModelGrader, leaves
from zhub.suggestions import did_you_mean

PLACEHOLDER = re.compile(r"\{\{\s*([a-z_]+)((?:\.[^{}.\s]+)*)\s*\}\}")
KNOWN = "{{sample.output_text}}, {{sample.output_json.<key>}} and {{item.<column>}}"
FIELDS = ("input", "reference", "tests", "setup", "entry_point")


class UnreadableAnswerError(Exception):
    """The answer is not what the template or the grader reads. Control flow: becomes a grade of 0, not parsed."""


def fill(name: str, template: str, sample: Sample) -> str:
    """Replace the template's placeholders by this sample's and this row's values, for the grader ``name``.

    Raises:
        RewardError: the row lacks a column, or makes the text too long by itself.
        UnreadableAnswerError: the answer is no JSON, lacks a key, or makes the text too long.
    """
    parts: list[str] = []
    length = end = 0
    output_json = cache(partial(read_json, sample.output_text))
    for match in PLACEHOLDER.finditer(template):
        value = _text(_value(name, match, sample, output_json))
        parts += (template[end : match.start()], value)
        length += match.start() - end + len(value)
        end = match.end()
        if length > FILLED_CHARACTERS:
            break
    if length + len(template) - end > FILLED_CHARACTERS:
        message = f"the template '{template[:100]}' gives more than {FILLED_CHARACTERS:,} characters"
        if any(match[1] == "sample" for match in PLACEHOLDER.finditer(template)):
            raise UnreadableAnswerError(message)
        raise RewardError(name, f"{sample.where}{message}. Shorten the row's columns.")
    return "".join([*parts, template[end:]])


def look_up(name: str, template: str, sample: Sample) -> Any:
    """The value itself where the template is a single placeholder; the filled-in text otherwise."""
    match = PLACEHOLDER.fullmatch(template.strip())
    if match is None:
        return fill(name, template, sample)
    return _value(name, match, sample, partial(read_json, sample.output_text))


def read_json(text: str) -> Any:
    """Parse JSON by the standard: NaN and Infinity are refused.

    Raises:
        UnreadableAnswerError: the text is not JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise UnreadableAnswerError(f"the answer is not JSON: {exc}") from exc


def _value(name: str, match: re.Match[str], sample: Sample, output_json: Callable[[], Any]) -> Any:
    root, path = match[1], match[2].split(".")[1:]
    if root == "sample":
        if path == ["output_text"]:
            return sample.output_text
        value: Any = output_json()
        path = path[1:]
    else:
        value = sample.item
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            if root == "sample":
                raise UnreadableAnswerError(f"the answer has no '{match[0]}'")
            raise RewardError(name, f"{sample.where}the row has no column 'item.{'.'.join(path)}'")
        value = value[key]
    return value


def _text(value: object) -> str:
    """Values as JSON writes them, so that 3 in a row compares equal to the answer "3"; None as nothing."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def check_templates(grader: Grader, columns: Mapping[str, int], rows: int, *, param: str) -> None:
    """Refuse a grader whose templates cannot be filled in on every row of the dataset.

    ``columns`` counts in how many of the ``rows`` each column occurs.

    Raises:
        InvalidRequestError: names the field, the placeholder, and the columns that there are.
    """
    check_syntax(grader, param=param)
    for part_param, part in leaves(grader, param):
        for field, template in _templates(part):
            for match in PLACEHOLDER.finditer(template):
                if match[1] == "item":
                    _check_column(part, match, columns, rows, f"{part_param}.{field}")


def check_syntax(grader: Grader, *, param: str) -> None:
    """Refuse a grader with a template that no row could fill in, or that does not use the answer.

    Raises:
        InvalidRequestError: names the field and the placeholder.
    """
    for part_param, part in leaves(grader, param):
        templates = list(_templates(part))
        if isinstance(part, ScoreModelGrader) and len(templates) > JUDGE_MESSAGES:
            raise _refusal(part, f"a judge reads at most {JUDGE_MESSAGES} messages.", f"{part_param}.input")
        for field, template in templates:
            if len(template) > TEMPLATE_CHARACTERS:
                message = f"the template has {len(template):,} characters; at most {TEMPLATE_CHARACTERS:,} are read."
                raise _refusal(part, message, f"{part_param}.{field}")
            if "{{" in PLACEHOLDER.sub("", template):
                raise _refusal(part, f"cannot read the template {template!r}. Use {KNOWN}.", f"{part_param}.{field}")
            for match in PLACEHOLDER.finditer(template):
                root, path = match[1], match[2].split(".")[1:]
                of_the_answer = root == "sample" and (path == ["output_text"] or path[:1] == ["output_json"])
                if not of_the_answer and not (root == "item" and path):
                    raise _refusal(part, f"unknown placeholder {match[0]}. Use {KNOWN}.", f"{part_param}.{field}")
        used = "".join(template for _field, template in templates)
        if templates and not any(match[1] == "sample" for match in PLACEHOLDER.finditer(used)):
            field = "input"
            raise _refusal(
                part,
                f"never looks at the answer: use {{{{sample.output_text}}}} in its {field}.",
                f"{part_param}.{field}",
            )
        if isinstance(part, CodeTestsGrader) and not PLACEHOLDER.fullmatch(part.tests.strip()):
            raise _refusal(part, "tests must be one column, such as {{item.test_list}}.", f"{part_param}.tests")


def _templates(grader: Grader) -> Iterator[tuple[str, str]]:
    if isinstance(grader, PythonGrader):
        return
    if isinstance(grader, ScoreModelGrader):
        for index, message in enumerate(grader.input):
            yield f"input.{index}.content", message.content
        return
    for field in FIELDS:
        template = getattr(grader, field, None)
        if template is not None:
            yield field, template


def _check_column(grader: Grader, match: re.Match[str], columns: Mapping[str, int], rows: int, param: str) -> None:
    column = match[2].split(".")[1]
    present = columns.get(column, 0)
    if present < rows:
        have = ", ".join(sorted(columns)) or "none"
        missing = "no row has" if present == 0 else f"{rows - present} of {rows} rows lack"
        near = did_you_mean(column, columns) if present == 0 else ""
        raise _refusal(grader, f"needs the column '{column}', which {missing}.{near} Columns found: {have}.", param)


def _refusal(grader: Grader, message: str, param: str) -> InvalidRequestError:
    colon = "" if message.startswith(("needs", "never")) else ":"
    return InvalidRequestError(f"Grader '{grader.name}'{colon} {message}", param=param, code="invalid_grader")
