"""What is near a version, among what a caller may see: trained on the same data, or changing the same basis alike.

Functions take a Session and never commit; what is compared lies in the object store, and is read after the session.
"""

import uuid
from collections.abc import Sequence

from sqlalchemy.orm import Session

from zhub.registry import catalogue
from zhub.registry.catalogue import Listed
from zhub.registry.search import Order
from zhub.registry.search_query import Term
from zhub.registry.versions import SVF, VersionRecord
from zhub.tenancy.keys import Caller

MAX_COMPARED = 24  # whose changes are read from the store
MAX_OF_DATASET = 50


def to_compare(session: Session, caller: Caller, record: VersionRecord) -> list[Listed]:
    """What a version is compared with: of each other expert of its basis one version, with ``@prod`` first, the most
    used of them first."""
    of_basis = [_term("basis", record.version.manifest["basis_fingerprint"]), _term("adapter", SVF)]
    promoted = _found(session, caller, [*of_basis, _term("alias", "prod")], Order("tokens"), 2 * MAX_COMPARED)
    newest = _found(session, caller, of_basis, Order("newest"), 4 * MAX_COMPARED)
    by_expert: dict[uuid.UUID, Listed] = {}
    for listed in [*promoted, *newest]:
        by_expert.setdefault(listed.record.expert.id, listed)
    by_expert.pop(record.expert.id, None)
    return list(by_expert.values())[:MAX_COMPARED]


def of_dataset(session: Session, caller: Caller, record: VersionRecord) -> list[Listed]:
    """The other versions that were trained on the same file, newest first."""
    digest = record.version.manifest["dataset_digest"]
    if digest is None:
        return []
    found = _found(session, caller, [_term("dataset", digest)], Order("newest"), MAX_OF_DATASET + 1)
    return [listed for listed in found if listed.record.version.id != record.version.id][:MAX_OF_DATASET]


def _found(session: Session, caller: Caller, terms: Sequence[Term], order: Order, limit: int) -> list[Listed]:
    halves = catalogue.halves_of(session, caller)
    return catalogue.read(session, caller, catalogue.find(session, halves, terms, order, limit=limit))


def _term(name: str, value: str) -> Term:
    return Term(name, ":", value, f"{name}:{value}", 0)
