"""How experts are chosen for a request, and which were: what the API's users name and are told.

Apart from ``zhub.generation``, so that the command line need not load the specs of jobs and their graders.
"""

from typing import Literal

from pydantic import BaseModel

Router = Literal["centroid", "prompt"]
"""What chooses among experts: where their training prompts lie, or the base, asked which of them a prompt is for."""
ReleaseStrategy = Literal["mixture", Router]
Strategy = Literal["base", ReleaseStrategy]


class ChosenExpert(BaseModel):
    """One expert that answered: with what weight, in which blocks (None: in all), and why."""

    name: str
    digest: str
    weight: float
    layers: list[int] | None = None
    reason: str = ""
