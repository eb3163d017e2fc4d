"""How far, and where, a request follows an expert: a part of ``experts`` in its body.

Amplified (weight above 1), weakened, interpolated between several, turned around (below 0), or in some layers alone.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field
from pydantic import BaseModel as Schema
from pydantic_core import PydanticCustomError

from zhub.recipes import MAX_MIXTURE_WEIGHT
from zhub.registry import resolve

MAX_LAYER = 9_999
MAX_RANGES = 256
RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def _check_weight(weight: float) -> float:
    if not -MAX_MIXTURE_WEIGHT <= weight <= MAX_MIXTURE_WEIGHT:
        raise PydanticCustomError(
            "weight_out_of_bounds",
            "give -4 to 4: a weight multiplies all that the expert changes, z = 1 + weight * (z - 1), and farther out "
            "the change outgrows the base and answers become noise. Train the expert longer instead",
        )
    return weight


def _check_layers(layers: Sequence[int | str]) -> list[int]:
    numbers: set[int] = set()
    for part in layers:
        numbers.update(_numbers(part))
    if not numbers:
        raise PydanticCustomError(
            "no_layers", "it is empty. Leave it out for all layers; for none of them give the weight 0"
        )
    return sorted(numbers)


def _numbers(part: int | str) -> range:
    match = RANGE.fullmatch(str(part))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last <= MAX_LAYER:
        raise PydanticCustomError(
            "not_layers",
            "'{part}' names no layers: give numbers from 0, or ranges such as \"0-7\" whose last layer is included",
            {"part": str(part)[:40]},
        )
    return range(first, last + 1)


class MixturePart(Schema):
    """An expert and how it is followed: ``z = 1 + Σ weight · (z_k − 1)``, in ``layers`` alone if they are given.

    Weight 1 is the expert, 0 the base, and below 0 the opposite of what was trained. ``layers`` are numbers of blocks
    from 0, and ranges such as ``"0-7"``, whose last is included.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    weight: Annotated[
        float,
        AfterValidator(_check_weight),
        Field(json_schema_extra={"minimum": -MAX_MIXTURE_WEIGHT, "maximum": MAX_MIXTURE_WEIGHT}),
    ] = 1.0
    layers: (
        Annotated[
            list[Annotated[int, Field(strict=True)] | str], Field(max_length=MAX_RANGES), AfterValidator(_check_layers)
        ]
        | None
    ) = None

    @property
    def named(self) -> resolve.MixturePart:
        """As the registry looks it up."""
        layers = None if self.layers is None else tuple(int(layer) for layer in self.layers)
        return resolve.MixturePart(self.model, self.weight, layers)
