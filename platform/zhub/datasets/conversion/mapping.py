"""How the columns of foreign records become rows: by the names that public datasets use, or as somebody chose."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from zhub.datasets.conversion.cells import (
    CellError,
    EmptyCellError,
    Message,
    answer_of,
    filled,
    is_dialogue,
    messages_of,
    text_of,
    text_or_nothing,
)
from zhub.datasets.conversion.column_names import (
    ANSWERS,
    CONTEXTS,
    DIALOGUES,
    PARTS_OF_PROMPTS,
    PROMPTS,
    SYSTEMS,
    WEAK_PROMPTS,
)
from zhub.datasets.rows import PREFERENCE_COLUMNS

Method = Literal["reinforcement", "supervised", "dpo"]
Row = dict[str, Any]

NEVER_ITEMS = ("", "messages", *PREFERENCE_COLUMNS)
"""Names that no template can have, or that have a meaning of their own in a row."""
FINAL_ANSWER = "####"
# As in the templates of graders, whose room the command line does not import: it takes a second.
PLACEHOLDER = re.compile(r"\{\{\s*item((?:\.[^{}.\s]+)+)\s*\}\}")
CHOOSE = "Name them with --prompt-column and --answer-column, or write the prompt with --prompt-template"


class NoMappingError(ValueError):
    """The names of the columns do not say what they mean; the message says what to do."""


@dataclass(frozen=True)
class ChosenColumns:
    """What somebody said of the columns. ``prompt_template`` is text with ``{{item.<column>}}`` in it."""

    prompt_column: str | None = None
    answer_column: str | None = None
    prompt_template: str | None = None


@dataclass(frozen=True)
class ColumnMapping:
    """How a record becomes a row: ``parts`` in words, from what to what, and ``row``, which raises CellError."""

    parts: Sequence[tuple[str, str]]
    row: Callable[[Mapping[str, Any]], Row]
    is_identity: bool = False
    """The records are rows already."""
    has_answer: bool = True


def mapping_of(sample: Sequence[Mapping[str, Any]], chosen: ChosenColumns, method: Method | None) -> ColumnMapping:
    """How records like these become rows that the method trains on.

    With the method None a question's answer goes into the column ``answer``, and dialogues stay whole.

    Raises:
        NoMappingError: the columns have no known names, or several that compete.
    """
    columns = _Columns(list(dict.fromkeys(column for values in sample for column in values)))
    if chosen != ChosenColumns():
        if method == "dpo":
            raise NoMappingError("dpo trains on pairs of answers, whose columns are known by their names alone")
        return _question(sample, columns, chosen, method)
    if all(columns.named(name) for name in PREFERENCE_COLUMNS):
        return ColumnMapping([("every column", "itself")], filled, is_identity=True)
    messages = columns.one_of(("messages",), "messages")
    if columns.named("chosen") and columns.named("rejected") and (messages is None or method in (None, "dpo")):
        return _pairs(sample, columns)
    if messages is not None:
        return _messages(columns, messages)
    if dialogue := columns.one_of(DIALOGUES, "the dialogue"):
        return _dialogue(columns, dialogue, method)
    if method == "dpo":
        raise NoMappingError("dpo trains on pairs of answers, in columns named 'chosen' and 'rejected'")
    return _question(sample, columns, chosen, method)


class _Columns:
    """The columns of a file, found by name whatever their case."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def named(self, name: str) -> list[str]:
        return [column for column in self.names if column.strip().lower() == name]

    def one_of(self, names: Iterable[str], what: str) -> str | None:
        """The one column with any of these names. Raises NoMappingError where there are several."""
        columns = [column for name in names for column in self.named(name)]
        if len(columns) > 1:
            raise NoMappingError(f"several columns may be {what}: {', '.join(columns)}. {CHOOSE}")
        return columns[0] if columns else None

    def chosen(self, column: str) -> str:
        if column not in self.names:
            near = difflib.get_close_matches(column, self.names, n=1)
            raise NoMappingError(f"it has no column '{column}'" + (f"; the nearest is '{near[0]}'" if near else ""))
        return column

    def others(self, used: Sequence[str | None]) -> "_Others":
        """The columns that stay beside the messages, and those that cannot."""
        unused = [column for column in self.names if column not in used]
        return _Others(
            [column for column in unused if column not in NEVER_ITEMS],
            [column for column in unused if column in NEVER_ITEMS],
        )


@dataclass(frozen=True)
class _Others:
    """Columns beside those of the messages: ``kept`` for the grader, or ``left_out``."""

    kept: Sequence[str]
    left_out: Sequence[str]

    @property
    def parts(self) -> list[tuple[str, str]]:
        kept = [(column, f"the column '{column}'") for column in self.kept]
        return [*kept, *((column or "(no name)", "nothing: it is left out") for column in self.left_out)]

    def items(self, values: Mapping[str, Any]) -> Row:
        return filled({column: values.get(column) for column in self.kept})


def _messages(columns: _Columns, column: str) -> ColumnMapping:
    others = columns.others([column])

    def row(values: Mapping[str, Any]) -> Row:
        return {"messages": messages_of(values, column), **others.items(values)}

    return ColumnMapping([(column, "the messages"), *others.parts], row, is_identity=column == "messages")


def _dialogue(columns: _Columns, column: str, method: Method | None) -> ColumnMapping:
    system = columns.one_of(SYSTEMS, "the system's message")
    others = columns.others([column, system])
    answer_apart = method == "reinforcement"
    if answer_apart and "answer" in others.kept:
        raise NoMappingError("its column 'answer' competes with the last answer of the dialogue: rename it")

    def row(values: Mapping[str, Any]) -> Row:
        messages = [*_system(values, system), *messages_of(values, column)]
        if answer_apart and messages[-1]["role"] == "assistant":
            answer = answer_of({column: messages}, column)
            return {"messages": messages[:-1], **others.items(values), "answer": answer}
        return {"messages": messages, **others.items(values)}

    parts = [(column, "the messages, but for the last answer: the column 'answer'" if answer_apart else "the messages")]
    return ColumnMapping([*_system_part(system), *parts, *others.parts], row)


def _pairs(sample: Sequence[Mapping[str, Any]], columns: _Columns) -> ColumnMapping:
    (chosen, *_), (rejected, *_) = columns.named("chosen"), columns.named("rejected")
    prompt = columns.one_of(PROMPTS, "the prompt")
    context = columns.one_of(CONTEXTS, "the context of the prompt")
    system = columns.one_of(SYSTEMS, "the system's message")
    if prompt is None and not any(is_dialogue(values.get(chosen)) for values in sample):
        raise NoMappingError("'chosen' and 'rejected' are texts without a column 'prompt': split the prompt off")
    others = columns.others([chosen, rejected, prompt, context, system])

    def row(values: Mapping[str, Any]) -> Row:
        shared = messages_of(values, chosen)[:-1] if is_dialogue(values.get(chosen)) else []
        if not shared:
            if prompt is None:
                raise CellError(f"'{chosen}' must hold the prompt before the answer")
            shared = _prompt(values, prompt, context)
        answers = [answer_of(values, column) for column in (chosen, rejected)]
        preferred, other = ([{"role": "assistant", "content": answer}] for answer in answers)
        messages = [*_system(values, system), *shared]
        pair = {"input": {"messages": messages}, "preferred_output": preferred, "non_preferred_output": other}
        return {**others.items(values), **pair}

    before = (prompt, "the user's message") if prompt else (chosen, "the messages before the answer")
    parts = [before, (chosen, "the preferred answer"), (rejected, "the answer that is not preferred")]
    return ColumnMapping([*_system_part(system), *parts, *others.parts], row)


def _question(
    sample: Sequence[Mapping[str, Any]], columns: _Columns, chosen: ChosenColumns, method: Method | None
) -> ColumnMapping:
    if chosen.answer_column is not None:
        answer: str | None = columns.chosen(chosen.answer_column)
    else:
        answer = columns.one_of([name for name in ANSWERS if name != chosen.prompt_column], "the answer")
    if answer is None and method == "supervised":
        raise NoMappingError(f"it has no column for the answer. {CHOOSE}")
    if chosen.prompt_template is None:
        asked, used = _asked_by_columns(sample, columns, chosen, answer)
    else:
        asked, used = _asked_by_template(columns, chosen)
    others = columns.others([*used, answer])
    if answer is None:
        parts = [*asked.parts, *others.parts]
        return replace(asked, parts=parts, row=lambda values: {**asked.row(values), **others.items(values)})
    return _answered(asked, answer, others, sample, method)


def _asked_by_columns(
    sample: Sequence[Mapping[str, Any]], columns: _Columns, chosen: ChosenColumns, answer: str | None
) -> tuple[ColumnMapping, Sequence[str | None]]:
    """The mapping of the prompt, and the columns that it takes."""
    prompt, context = _prompt_column(columns, chosen, answer), None
    if chosen.prompt_column is None:
        _refuse_parts(sample, columns)
        context = columns.one_of([name for name in CONTEXTS if name != prompt], "the context of the prompt")
    system = columns.one_of(SYSTEMS, "the system's message")

    def row(values: Mapping[str, Any]) -> Row:
        return {"messages": [*_system(values, system), *_prompt(values, prompt, context)]}

    parts = [*_system_part(system), (f"{prompt} and {context}" if context else prompt, "the user's message")]
    return ColumnMapping(parts, row, has_answer=answer is not None), [prompt, context, system]


def _asked_by_template(columns: _Columns, chosen: ChosenColumns) -> tuple[ColumnMapping, Sequence[str | None]]:
    """The mapping of the prompt that a template writes; the columns in it stay."""
    template = chosen.prompt_template or ""
    if chosen.prompt_column is not None:
        raise NoMappingError("give --prompt-column or --prompt-template, not both")
    _check_template(columns, template)
    system = columns.one_of(SYSTEMS, "the system's message")

    def row(values: Mapping[str, Any]) -> Row:
        prompt = {"role": "user", "content": _filled_in(template, values)}
        return {"messages": [*_system(values, system), prompt]}

    return ColumnMapping([*_system_part(system), ("the template", "the user's message")], row), [system]


def _answered(
    asked: ColumnMapping,
    answer: str,
    others: _Others,
    sample: Sequence[Mapping[str, Any]],
    method: Method | None,
) -> ColumnMapping:
    """The mapping with an answer: the assistant's message where that is trained on, and the column ``answer``."""
    as_message = method == "supervised"
    if "answer" in others.kept and not as_message:
        raise NoMappingError(f"its column 'answer' is not the answer, '{answer}' is: rename one of them")
    texts = [text for values in sample if isinstance(text := values.get(answer), str) and text.strip()]
    final = bool(texts) and all(_final(text) for text in texts)
    whole = "solution" if final and not as_message and "solution" not in others.kept else None

    def row(values: Mapping[str, Any]) -> Row:
        made, text = asked.row(values), answer_of(values, answer)
        if as_message:
            made["messages"].append({"role": "assistant", "content": text})
        if whole is not None:
            made[whole] = text
        if final and not (text := _final(text)):
            raise CellError(f"'{answer}' has no answer after {FINAL_ANSWER} in its last line, as other rows do")
        return {**made, "answer": text, **others.items(values)}

    column = f"the column 'answer': what follows {FINAL_ANSWER}" if final else "the column 'answer'"
    parts = [(answer, "the assistant's message")] if as_message else []
    if "answer" not in others.kept:
        parts.append((answer, column))
    if whole is not None:
        parts.append((answer, f"the column '{whole}': all of it"))
    return replace(asked, parts=[*asked.parts, *parts, *others.parts], row=row)


def _prompt_column(columns: _Columns, chosen: ChosenColumns, answer: str | None) -> str:
    if chosen.prompt_column is not None:
        return columns.chosen(chosen.prompt_column)
    prompt = columns.one_of(PROMPTS, "the prompt")
    if prompt is None and answer is not None:
        prompt = columns.one_of(WEAK_PROMPTS, "the prompt")
    if prompt is None or prompt == answer:
        raise NoMappingError(f"none of them is known for a prompt with an answer. {CHOOSE}")
    return prompt


def _refuse_parts(sample: Sequence[Mapping[str, Any]], columns: _Columns) -> None:
    named = [column for name in PARTS_OF_PROMPTS for column in columns.named(name)]
    if parts := [column for column in named if any(values.get(column) for values in sample)]:
        raise NoMappingError(
            f"the prompt needs '{parts[0]}' as well: say how with --prompt-template, as in "
            f"'{{{{item.question}}}} {{{{item.{parts[0]}}}}}'"
        )


def _check_template(columns: _Columns, template: str) -> None:
    placeholders = list(PLACEHOLDER.finditer(template))
    if not placeholders or "{{" in PLACEHOLDER.sub("", template):
        raise NoMappingError("the template of the prompt names columns as {{item.<column>}}, and nothing else")
    for match in placeholders:
        columns.chosen(match[1].split(".")[1])


def _filled_in(template: str, values: Mapping[str, Any]) -> str:
    """The template with the values of the record; lists and objects as JSON."""

    def text(match: re.Match[str]) -> str:
        value: Any = values
        for key in match[1].split(".")[1:]:
            value = value.get(key) if isinstance(value, Mapping) else None
        filling = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        fillings.append(filling)
        return filling

    fillings: list[str] = []
    filled_in = PLACEHOLDER.sub(text, template)
    if not "".join(fillings).strip():
        raise EmptyCellError("nothing is in the columns of the template")
    return filled_in


def _prompt(values: Mapping[str, Any], prompt: str, context: str | None) -> list[Message]:
    if is_dialogue(values.get(prompt)):
        return messages_of(values, prompt)
    text = text_of(values, prompt)
    more = text_or_nothing(values, context) if context is not None else ""
    return [{"role": "user", "content": f"{text}\n\n{more}" if more.strip() else text}]


def _final(text: str) -> str:
    """What follows FINAL_ANSWER in the last line of a worked solution, as in GSM8K; ``""`` where it is none."""
    last = text.strip().splitlines()[-1]
    return last.removeprefix(FINAL_ANSWER).strip() if last.startswith(FINAL_ANSWER) else ""


def _system(values: Mapping[str, Any], column: str | None) -> list[Message]:
    text = text_or_nothing(values, column) if column is not None else ""
    return [{"role": "system", "content": text}] if text.strip() else []


def _system_part(column: str | None) -> list[tuple[str, str]]:
    return [(column, "the system's message")] if column is not None else []
