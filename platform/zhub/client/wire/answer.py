"""What all answers have in common."""

from pydantic import BaseModel, ConfigDict

ENDED = ("succeeded", "failed", "cancelled")


class Answer(BaseModel):
    """An answer of the API. Fields that a newer server adds are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")
