"""What is near a version: by what it changes and by its data, among what the caller may see."""

import hashlib
import io
import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest
from sharing_requests import Ask, asking
from sqlalchemy import Engine, select

from zhub.database.sessions import system_session
from zhub.manifest import CHANGE_FILE, FileEntry
from zhub.models import ExpertVersion
from zhub.storage.directory import DirectoryStore

# Versions get files that say how near they are, which the database refuses once they are published.
pytestmark = pytest.mark.usefixtures("unfrozen")

Vector = tuple[float, ...]


def safetensors(vector: Vector) -> bytes:
    values = np.array(vector, dtype="<f4").tobytes()
    entry = {"dtype": "F32", "shape": [len(vector)], "data_offsets": [0, len(values)]}
    header = json.dumps({"w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + values


@pytest.fixture
def changing(publish_version: Callable[..., str], store: DirectoryStore, system_engine: Engine) -> Callable[..., str]:
    """Publish a version that changes its basis by a vector."""

    def make(expert: str, vector: Vector, **more: Any) -> str:
        content = safetensors(vector)
        file = FileEntry(name=CHANGE_FILE, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        name = publish_version(expert, files=[file], **more)
        prefix = f"t/{uuid.uuid4().hex}"
        with system_session(system_engine) as session:
            version = session.scalars(select(ExpertVersion).order_by(ExpertVersion.created_at.desc()).limit(1)).one()
            version.key_prefix = prefix
        store.put(f"{prefix}/{CHANGE_FILE}", io.BytesIO(content))
        return name

    return make


def near(ask: Ask, name: str) -> tuple[list[tuple[str, float]], list[str]]:
    answer = ask("get", f"/experts/{name}/neighbours")
    alike = [(one["model"], round(one["cosine"], 3)) for one in answer["alike"]]
    return alike, [one["model"] for one in answer["same_dataset"]]


def test_what_changes_the_basis_alike_is_near_and_what_has_the_same_data(
    ask: Ask, changing: Callable[..., str]
) -> None:
    name = changing("summer", (1.0, 0.0), dataset_digest="a")
    changing("winter", (0.6, 0.8), dataset_digest="a")
    changing("spring", (-1.0, 0.0), dataset_digest="b")
    changing("elsewhere", (1.0, 0.0), dataset_digest="b", basis_fingerprint="other")
    alike, same_dataset = near(ask, name)
    assert alike == [("main.winter@v1", 0.6), ("main.spring@v1", -1.0)]
    assert same_dataset == ["main.winter@v1"]


def test_of_each_other_expert_what_prod_points_to_is_compared(ask: Ask, changing: Callable[..., str]) -> None:
    name = changing("summer", (1.0, 0.0))
    changing("summer", (0.0, 1.0))
    first = changing("winter", (1.0, 0.0))
    changing("winter", (0.0, 1.0))
    assert near(ask, name)[0] == [("main.winter@v2", 0.0)]
    ask("put", "/experts/main.winter/aliases/prod", {"version": first})
    assert near(ask, name)[0] == [(first, 1.0)]


def test_others_are_near_only_where_they_are_shared(
    ask: Ask,
    globex: openai.OpenAI,
    changing: Callable[..., str],
    make_caller: Callable[..., Any],
) -> None:
    changing("summer", (1.0, 0.0), dataset_digest="a")
    changing("winter", (0.0, 1.0), dataset_digest="a")
    ask("put", "/experts/main.winter/visibility", {"visibility": "public"})
    own = changing("own", (1.0, 0.0), dataset_digest="a", owner=make_caller("globex"))
    assert near(asking(globex), own) == ([("acme.main.winter@v1", 0.0)], ["acme.main.winter@v1"])
    assert near(asking(globex), "acme.main.winter") == ([(own, 0.0)], [own])
