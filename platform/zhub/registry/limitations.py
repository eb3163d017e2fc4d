"""What a base model cannot do, found by the trial that decomposes it: it is ready all the same, and says so."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from zhub.errors import InvalidRequestError

LimitationName = Literal["serve_only", "no_batching", "no_padding", "no_row_selection", "no_continuation"]

TITLES: dict[LimitationName, str] = {
    "serve_only": "serve only: no expert can be trained on it",
    "no_batching": "no batching: its rows are read one at a time",
    "no_padding": "no padding: prompts of unequal length are not read in one batch",
    "no_row_selection": "no row selection: finished answers stay in their batch, and equal prompts are read repeatedly",
    "no_continuation": "no continuation: a prompt is read again with each of its answers that is scored",
}


class Limitation(BaseModel):
    """One of TITLES, with what was found. ``details['limitations']`` of a base model holds them."""

    model_config = ConfigDict(frozen=True)
    name: LimitationName
    reason: str

    def __str__(self) -> str:
        return f"{TITLES[self.name]} ({self.reason})"


def limitations_of(details: Mapping[str, Any]) -> list[Limitation]:
    """The limitations in a base model's details; none where an earlier release decomposed it."""
    return [Limitation.model_validate(limitation) for limitation in details.get("limitations", [])]


def check_trainable_base(name: str, details: Mapping[str, Any]) -> None:
    """Refuse a base model on which no expert can be trained. Raises InvalidRequestError, with the reason."""
    for limitation in limitations_of(details):
        if limitation.name == "serve_only":
            raise InvalidRequestError(
                f"No expert can be trained on the base model '{name}', which serves only: {limitation.reason}. "
                "GET /v1/base_models lists the others.",
                param="model",
                code="base_model_serves_only",
            )
