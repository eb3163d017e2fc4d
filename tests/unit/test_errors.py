"""The tree of errors: every class drawn, described, and decided upon by the API."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import pytest

import zhub
import zhub_api
from zhub import errors
from zhub.errors import SchemaVersionError, ZhubError
from zhub_api.errors import STATUSES, TYPES, envelope, status_of

LIGHT_WORKERS = ("attempts.worker", "agent.launcher", "worker.light_runner", "agent.reconcile")


def modules() -> Iterator[str]:
    for package in (zhub, zhub_api):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield found.name
    yield from (f"zhub_workers.{name}" for name in LIGHT_WORKERS)


def subclasses(of: type[ZhubError]) -> Iterator[type[ZhubError]]:
    yield of
    for below in of.__subclasses__():
        yield from subclasses(below)


for name in modules():
    importlib.import_module(name)

EVERY = sorted(
    {found for found in subclasses(ZhubError) if found.__module__.startswith("zhub")}, key=lambda c: c.__name__
)


@pytest.mark.parametrize("found", EVERY, ids=lambda c: c.__name__)
def test_the_api_has_decided_on_a_status_for_every_error(found: type[ZhubError]) -> None:
    assert found in STATUSES


@pytest.mark.parametrize("found", EVERY, ids=lambda c: c.__name__)
def test_every_error_is_defined_in_the_one_tree(found: type[ZhubError]) -> None:
    assert found.__module__.startswith("zhub.errors.") and getattr(errors, found.__name__) is found


def drawn() -> dict[str, str]:
    """Each class of the drawing with the one it hangs from."""
    above: dict[int, str] = {}
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            above[depth] = match[2]
            found[match[2]] = above[depth - 1] if depth else "Exception"
    return found


def test_the_drawing_shows_every_class_where_it_is() -> None:
    actual = {name: found.__bases__[0].__name__ for name, found in inspect.getmembers(errors, inspect.isclass)
              if issubclass(found, ZhubError)}  # fmt: skip
    assert drawn() == actual


@pytest.mark.parametrize("found", EVERY, ids=lambda c: c.__name__)
def test_every_error_says_what_happened_in_its_docstring(found: type[ZhubError]) -> None:
    assert found.__doc__ and found.__doc__ != found.__bases__[0].__doc__


def test_no_two_errors_share_a_code() -> None:
    codes = [found.code for found in EVERY if "code" in vars(found)]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("status", sorted({status for status in STATUSES.values() if status and status < 500}))
def test_every_status_that_is_the_callers_fault_has_a_type_in_the_dialect(status: int) -> None:
    assert status in TYPES


def test_an_error_that_should_have_stayed_inside_is_a_failure_of_ours() -> None:
    assert status_of(errors.LeaseLostError("job", 1)) == 500


def test_the_envelope_has_all_four_fields_of_the_dialect() -> None:
    assert envelope(404, "No such file.", code="not_found") == {
        "error": {"message": "No such file.", "type": "invalid_request_error", "param": None, "code": "not_found"}
    }


@pytest.mark.parametrize(
    ("found", "remedy"),
    [(None, "run `zhub db upgrade`"), ("0001", "run `zhub db upgrade`"), ("0003", "start the newer release")],
)
def test_a_schema_of_another_release_comes_with_its_remedy(found: str | None, remedy: str) -> None:
    assert remedy in str(SchemaVersionError(found, "0002"))
