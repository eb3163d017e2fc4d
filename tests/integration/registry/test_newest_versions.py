"""The newest version of each expert, which a warm start chooses from."""

import itertools
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, select

from zhub.database.sessions import system_session
from zhub.models import BaseModel
from zhub.registry import aliases, listing, versions
from zhub.registry.versions import VersionRecord
from zhub.tenancy.keys import Caller

Publish = Callable[..., str]

# What keeps a version from being chosen: another basis, a kind that no training can begin from, and, of the newest of
# those left, that it is the base.
OTHER_BASIS = {"basis_fingerprint": "c" * 64}
LORA = {"hyperparameters": {"n_steps": 1, "adapter": "lora"}}
BASE = {"best_step": 0}
SVF = {"hyperparameters": {"n_steps": 1, "adapter": "svf"}}
CONTINUED = {"best_step": 0, "parent_digest": "p"}


def test_the_newest_versions_are_those_that_a_look_at_every_manifest_finds(
    publish_version: Publish, system_engine: Engine, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    kinds: tuple[dict[str, Any], ...] = (OTHER_BASIS, LORA, BASE, SVF, CONTINUED)
    for number, (older, newer) in enumerate(itertools.product(kinds, repeat=2)):
        publish_version(f"e{number}", **older)
        publish_version(f"e{number}", **newer)
    publish_version("e0", owner=make_caller("globex"))
    with system_session(system_engine) as session:
        base = session.scalars(select(BaseModel)).one()
        all_versions, has_more = listing.list_versions(session, caller.project_id, limit=100)
        chosen = [record.name for record in versions.newest(session, caller.project_id, base, limit=100)]
        first = [record.name for record in versions.newest(session, caller.project_id, base, limit=3)]
    assert not has_more and len(all_versions) == 2 * len(kinds) ** 2
    assert chosen == newest_by_hand(all_versions, base) and len(chosen) > 3
    assert first == chosen[:3]


def test_a_version_of_another_base_is_not_among_the_newest(
    publish_version: Publish, make_base_model: Callable[..., uuid.UUID], system_engine: Engine, caller: Caller
) -> None:
    publish_version("a")
    other = make_base_model("other")
    with system_session(system_engine) as session:
        assert versions.newest(session, caller.project_id, session.get_one(BaseModel, other), limit=9) == []


def newest_by_hand(records: list[VersionRecord], base: BaseModel) -> list[str]:
    names, seen = [], set()
    for record in records:
        manifest = record.version.manifest
        fits = manifest["basis_fingerprint"] == base.basis_fingerprint
        if not fits or manifest["hyperparameters"].get("adapter") == "lora" or record.expert.id in seen:
            continue
        seen.add(record.expert.id)
        if manifest["best_step"] > 0 or manifest["parent_digest"] is not None:
            names.append(record.name)
    return names


def test_a_warm_start_begins_from_what_prod_points_to_and_from_the_newest_where_there_is_no_prod(
    publish_version: Publish, system_engine: Engine, caller: Caller
) -> None:
    first, *_ = publish_version("a"), publish_version("a")
    _, newest = publish_version("b"), publish_version("b")
    lora, _ = publish_version("c", **LORA), publish_version("c")
    with system_session(system_engine) as session:
        for name in (first, lora):
            aliases.move(session, "prod", versions.get_version(session, caller.project_id, name), by="test")
        other = versions.get_version(session, caller.project_id, newest.replace("v2", "v1"))
        aliases.move(session, "staging", other, by="test")
        base = session.scalars(select(BaseModel)).one()
        chosen = {record.name for record in versions.newest(session, caller.project_id, base, limit=100)}
        assert chosen == {first, newest}  # the promoted one of c cannot be begun from, and no other steps in
        alias = aliases.get(session, other.expert, "staging")
        aliases.remove(session, alias, by="test")
        aliases.remove(session, aliases.get(session, versions.get_expert(session, caller, "main.a"), "prod"), by="test")
        assert first.replace("v1", "v2") in {
            r.name for r in versions.newest(session, caller.project_id, base, limit=100)
        }
