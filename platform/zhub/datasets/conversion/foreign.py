"""What an uploaded file is that holds no rows: in one sentence, instead of a problem for each of its lines."""

import codecs
import io

from zhub.datasets.conversion import json_text
from zhub.datasets.conversion.mapping import ChosenColumns, NoMappingError, mapping_of
from zhub.datasets.conversion.recognition import HEAD_BYTES, Content, UnreadableContentError, json_lines, recognise

NAMED_COLUMNS = 20


def foreign_content(head: bytes) -> str | None:
    """What a file is, by its first HEAD_BYTES, with what makes rows of it; None where its lines may be rows.

    Text that is nothing known is left to the check of its lines: they say best what is wrong.
    """
    try:
        content = recognise(head)
    except UnreadableContentError as exc:
        return f"the file is no JSON Lines: {exc}" if exc.is_known else None
    if content.kind == "jsonl" and content.is_utf8:
        columns = _foreign_columns(head)
        what = f"its rows have the columns {columns}, and no 'messages'" if columns else None
    else:
        what = f"the file is {content}, and a dataset is JSON Lines in UTF-8" if _is_sure(content, head) else None
    return what and f"{what}; `zhub datasets convert FILE -o rows.jsonl` makes it one"


def _foreign_columns(head: bytes) -> str | None:
    """The columns of JSON Lines that could be converted to rows."""
    sample = json_lines(codecs.getincrementaldecoder("utf-8-sig")().decode(head))
    try:
        mapping = mapping_of(sample, ChosenColumns(), None)
    except NoMappingError:
        return None
    if mapping.is_identity or not mapping.has_answer:
        return None
    columns = list(dict.fromkeys(column for values in sample for column in values))
    return ", ".join(columns[:NAMED_COLUMNS])


def _is_sure(content: Content, head: bytes) -> bool:
    """Whether it is that format indeed: what begins with a brace may also be a line of JSON that is broken."""
    if content.kind == "empty":
        return False
    if content.kind != "json":
        return True
    text = codecs.getincrementaldecoder(content.encoding)().decode(head).lstrip()
    if text.startswith("[") or len(head) == HEAD_BYTES:
        return text.startswith("[") or "\n" in text
    try:
        return any(True for _row in json_text.objects(io.StringIO(text)))
    except json_text.JsonTextError:
        return False
