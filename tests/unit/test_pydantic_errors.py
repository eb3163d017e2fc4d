"""What pydantic says becomes our own refusal: one message, one field at fault, and nothing long or foreign in it."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from zhub.errors import InvalidRequestError
from zhub.pydantic_errors import refusal


class Part(BaseModel):
    size: Annotated[int, Field(ge=1)] = 1


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", "b"]
    parts: list[Part] = []
    source: str = ""
    low: int = 0
    high: int = 1

    @field_validator("source")
    @classmethod
    def _is_short(cls, source: str) -> str:
        if len(source) > 9:
            raise ValueError("the source is too long.")
        return source

    @model_validator(mode="after")
    def _ascends(self) -> "Whole":
        if self.low > self.high:
            raise PydanticCustomError("conflict", "low is above high", {"field": "low"})
        return self


def refused(given: Any, **options: Any) -> InvalidRequestError:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(given)
    return refusal(caught.value.errors(), **options)


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({}, "kind", "kind: Field required."),
        ({"kind": "c"}, "kind", "kind: Input should be 'a' or 'b' (got 'c')."),
        ({"kind": "a", "parts": [{"size": 0}]}, "parts.0.size", "greater than or equal to 1 (got 0)."),
        ({"kind": "a", "parts": {}}, "parts", "parts: Input should be a valid list."),
        ({"kind": "a", "source": "x" * 99}, "source", "source: the source is too long."),
        ({"kind": "a", "low": 5}, "low", "low: low is above high (got 5)."),
        ({"kind": "a", "high": -1}, "low", "low: low is above high."),
        ([], None, "Input should be a valid dictionary or instance of Whole."),
    ],
)
def test_a_refusal_names_the_field_the_reason_and_a_short_value(given: Any, param: str | None, message: str) -> None:
    error = refused(given)
    assert (error.param, error.code) == (param, "invalid_request")
    assert str(error).endswith(message)


def test_a_field_that_is_not_known_is_an_unknown_parameter() -> None:
    error = refused({"kind": "a", "knid": "b"})
    assert (error.param, error.code, str(error)) == (
        "knid", "unknown_parameter", "knid: Extra inputs are not permitted."
    )  # fmt: skip


def test_a_refusal_within_a_larger_request_names_the_whole_path() -> None:
    error = refused({"kind": "c"}, within="suites.0")
    assert (error.param, str(error)) == ("suites.0.kind", "suites.0.kind: Input should be 'a' or 'b' (got 'c').")
    assert refused([], within="suites.0").param == "suites.0"


def test_what_is_said_of_a_subject_is_the_same_wherever_it_was_given() -> None:
    errors = [refused({"kind": "c"}, within=within, subject="Thing", code="bad_thing") for within in ("a", "b.0")]
    assert [error.param for error in errors] == ["a.kind", "b.0.kind"]
    assert {str(error) for error in errors} == {"Thing: kind: Input should be 'a' or 'b' (got 'c')."}
    assert {error.code for error in errors} == {"bad_thing"}


@pytest.mark.parametrize("value", ["x" * 10_000, 10**4000])
def test_a_long_value_is_shown_in_part(value: Any) -> None:
    assert len(str(refused({"kind": value}))) < 200


def test_a_path_is_shown_as_users_know_it() -> None:
    assert refused({"kind": "a", "parts": [{"size": 0}]}, path=lambda location: location[1:]).param == "0.size"
