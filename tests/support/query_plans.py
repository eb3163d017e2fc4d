"""The plan of a statement that a function of ours sends, and what it read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

Plan = Mapping[str, Any]
OpenSession = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Reads:
    """What a statement read."""

    rows: int
    """Of the large tables, whether they were kept or not."""
    indexes: frozenset[str]
    scanned: frozenset[str]
    """Large tables that were read from end to end."""
    took_ms: float


def reads_of(open_session: OpenSession, call: Callable[[Session], object], marker: str, large: set[str]) -> Reads:
    """Let ``call`` send its statements, and explain the one with ``marker`` in it on the same rows; keep nothing."""
    with open_session() as session:
        statement, parameters = _sent(session, call, marker)
        session.rollback()
    with open_session() as session:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        (plan,) = session.connection().exec_driver_sql(explain, parameters).scalar_one()
        session.rollback()
    scans = [node for node in _nodes(plan["Plan"]) if node["Node Type"].endswith("Scan")]
    of_large = [scan for scan in scans if scan.get("Relation Name") in large]
    return Reads(
        rows=round(sum(_rows_read(scan) for scan in of_large)),
        indexes=frozenset(scan["Index Name"] for scan in scans if "Index Name" in scan),
        scanned=frozenset(scan["Relation Name"] for scan in of_large if scan["Node Type"] == "Seq Scan"),
        took_ms=plan["Execution Time"],
    )


def _sent(session: Session, call: Callable[[Session], object], marker: str) -> tuple[str, Any]:
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if marker in statement:
            sent.append((statement, parameters))

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", note)
    call(session)
    (statement,) = sent
    return statement


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _rows_read(scan: Plan) -> float:
    dropped = scan.get("Rows Removed by Filter", 0) + scan.get("Rows Removed by Index Recheck", 0)
    return float((scan["Actual Rows"] + dropped) * scan["Actual Loops"])
