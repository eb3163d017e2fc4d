"""``zhub experts``: what is asked of the API, and what is shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import api_double
import api_examples
import pytest
from api_examples import EXPERT, MANIFEST, ROUTING, Z
from typer.testing import CliRunner

from zhub.cli import app
from zhub.manifest import Mixture

Run = Callable[..., int]
OF_EXPERT = "default.sorting"
EXPERT_RECORD = {
    "id": "default.sorting",
    "object": "expert",
    "created_at": 1_700_000_000,
    "name": "sorting",
    "former_names": ["letters"],
    "description": "Sorts letters.",
    "tags": {"team": "search"},
    "archived": True,
    "versions": 3,
    "newest": "default.sorting@v3",
    "aliases": ["prod"],
}
CHANGE = {
    "id": "change-1",
    "created_at": 1_700_000_450,
    "subject": "default.sorting",
    "by": "key-1",
    "changes": {"name": {"from": "letters", "to": "sorting"}, "tags": {"from": {}, "to": {"team": "search"}}},
}


@pytest.fixture(autouse=True)
def experts(api: Any) -> None:
    """An expert that can be shown, changed and deleted, as can its version."""
    api.add("DELETE", f"/v1/experts/{OF_EXPERT}/aliases/prod", {"deleted": True})
    for name in (OF_EXPERT, EXPERT):
        api.add("GET", f"/v1/experts/{name}/changes", api_double.page([CHANGE]))
        api.add("DELETE", f"/v1/experts/{name}", {"id": name, "deleted": True})
    for method in ("GET", "PATCH"):
        api.add(method, f"/v1/experts/{OF_EXPERT}", EXPERT_RECORD)


def test_a_list_asks_for_what_the_options_say_and_stops_at_its_limit(api: Any, zhub: Run) -> None:
    options = ("--search", "sort", "--base", "zhub-tiny", "--tag", "a=b", "--tag", "c", "--alias", "prod")
    assert zhub("experts", "ls", *options, "--archived", "--sort", "score", "--limit", "5") == 0
    asked = api.requests[-1].url.params
    assert asked.get_list("tag") == ["a=b", "c"]
    others = {name: value for name, value in asked.items() if name != "tag"}
    assert others == {
        "search": "sort", "base": "zhub-tiny", "alias": "prod", "archived": "true", "sort": "score", "limit": "5",
    }  # fmt: skip


def test_a_list_shows_aliases_and_tags(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "ls") == 0
    out = capsys.readouterr().out
    assert "@prod" in out and "team=search" in out


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("describe", EXPERT, "Sorts."), {"description": "Sorts."}),
        (("tag", OF_EXPERT, "a=b=c", "d=", "--remove", "e"), {"tags": {"a": "b=c", "d": "", "e": None}}),
        (("rename", OF_EXPERT, "letters"), {"name": "letters"}),
        (("archive", EXPERT), {"archived": True}),
        (("unarchive", OF_EXPERT), {"archived": False}),
    ],
)
def test_a_change_is_asked_for_and_its_result_shown(
    arguments: tuple[str, ...], body: Any, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("experts", *arguments) == 0
    assert api.bodies("PATCH", f"/v1/experts/{arguments[1]}") == [body]
    assert "Sorts letters." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("no-pair",)])
def test_a_tag_without_a_value_is_a_usage_error(arguments: tuple[str, ...], api: Any, zhub: Run) -> None:
    assert zhub("experts", "tag", EXPERT, *arguments) == 2
    assert api.requests == []


def test_an_expert_is_shown_with_its_former_names(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "show", OF_EXPERT) == 0
    out = capsys.readouterr().out
    assert "once called  letters" in out and "the newest default.sorting@v3" in out and "archived" in out


def test_a_version_is_shown_with_the_name_of_its_parent_beside_the_digest(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = "ab" * 32
    warm = MANIFEST.model_copy(update={"parent_digest": digest})
    api.publish(warm, {"z.safetensors": Z, "routing.safetensors": ROUTING})
    assert zhub("experts", "show", EXPERT) == 0
    assert f"default.letters@v3 (sha256:{digest})" in capsys.readouterr().out


@pytest.mark.parametrize(("trained", "kind"), [({"adapter": "frames"}, "frames"), ({}, "svf")])
def test_a_version_is_shown_with_its_kind(
    trained: dict[str, Any], kind: str, api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = MANIFEST.model_copy(update={"hyperparameters": trained})
    api.publish(manifest, {"z.safetensors": Z, "routing.safetensors": ROUTING})
    assert zhub("experts", "show", EXPERT) == 0
    assert ["kind", kind] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("name", "what"), [(EXPERT, EXPERT), (OF_EXPERT, "default.sorting with its 3 versions")])
def test_a_deletion_asks_first_and_says_what_it_deletes(
    name: str, what: str, api: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"ZHUB_API_URL": url, "ZHUB_API_KEY": api_examples.KEY}
    refused = CliRunner().invoke(app, ["experts", "rm", name], input="n\n", env=environment)
    assert refused.exit_code == 1 and f"Delete {what} for good?" in refused.output
    assert not [sent for sent in api.requests if sent.method == "DELETE"]
    agreed = CliRunner().invoke(app, ["experts", "rm", name], input="y\n", env=environment)
    assert agreed.exit_code == 0 and [sent.url.path for sent in api.requests if sent.method == "DELETE"] == [
        f"/v1/experts/{name}"
    ]


def test_a_deletion_with_yes_asks_nothing(api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "rm", EXPERT, "--yes") == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"{EXPERT} is deleted.\n"


def test_an_alias_is_removed(api: Any, zhub: Run) -> None:
    assert zhub("experts", "demote", "default.sorting@prod") == 0
    assert api.requests[-1].method == "DELETE"


def test_the_history_has_a_line_for_each_field_that_changed(zhub: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert zhub("experts", "history", OF_EXPERT) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3:] for line in lines] == [
        ["name", "letters", "sorting", "key-1"],
        ["tags", "-", "team=search", "key-1"],
    ]


@pytest.mark.parametrize("place", ["a-file", "a-file/below"])
def test_a_version_is_not_pulled_to_where_a_file_is(
    place: str, zhub: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("mine")
    assert zhub("experts", "pull", EXPERT, "--directory", str(tmp_path / place)) in (1, 5)
    err = capsys.readouterr().err
    assert str(tmp_path / place) in err and len(err.splitlines()) == 1
    assert (tmp_path / "a-file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_schedule_that_is_not_there_is_answered_with_the_one_that_may_have_been_meant(
    zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zhub("schedules", "rm", "weakly") == 4
    assert "Did you mean 'weekly'?" in capsys.readouterr().err


def test_a_mixture_is_shown_with_its_experts_and_their_weights(
    api: Any, zhub: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = [
        {"name": "default.sorting@v1", "digest": "ab" * 32, "weights": {"0": 0.25, "1": 0.75}},
        {"name": "default.reversal@v2", "digest": "cd" * 32, "weights": {"0": 0.5, "1": 0.5}},
    ]
    mixture = Mixture.model_validate({"granularity": "layer", "experts": experts, "shots": [9, 2, 4]})
    api.publish(MANIFEST.model_copy(update={"mixture": mixture}), {})
    assert zhub("experts", "show", EXPERT) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0.25 to 0.75 in 2 layers of default.sorting@v1" in out and "0.5 in 2 layers of default.reversal@v2" in out
    assert "3 shots, lines 2, 4, 9" in out and "parent" not in out
