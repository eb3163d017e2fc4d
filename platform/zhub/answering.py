"""Who answers: experts and their weights, or what chooses among them. As users name it, and as workers get it.

It imports nothing of zhub: the command line loads it, and should not load the specs of jobs and their graders.
"""

import uuid
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Router = Literal["centroid", "prompt", "classifier"]
"""What chooses among experts: where their training prompts lie, or the base, asked which of them a prompt is for, or
the same question asked of an expert that was trained to answer it."""
ReleaseStrategy = Literal["mixture", Router]
Strategy = Literal["base", ReleaseStrategy]


class ChosenExpert(BaseModel):
    """One expert that answered: with what weight, in which blocks (None: in all), and why."""

    name: str
    digest: str
    weight: float
    layers: list[int] | None = None
    reason: str = ""


class SigningKey(BaseModel):
    """A public key of an organisation: ``public_key`` is the raw 32 bytes in base64, ``key_id`` their SHA-256.

    A retired key verifies what was published up to ``retired_at``, and nothing later.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    key_id: str
    public_key: str
    retired_at: datetime | None = None


class Attested(BaseModel):
    """Where the envelope of a version lies, and the public key that it must be signed with: for who loads its files."""

    model_config = ConfigDict(frozen=True)
    key: str
    sha256: str
    signing_key: SigningKey


class ExpertReference(BaseModel):
    """An expert version as serving needs it: by digest, so that it needs no database.

    ``description`` is what the router ``prompt`` goes by, empty where nothing is to be chosen.

    ``layers``: the numbers of the blocks that it changes, ascending; None for all of them.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    digest: str
    z_key: str
    z_sha256: str
    routing_key: str
    routing_sha256: str
    weight: float = 1.0
    description: str = ""
    layers: list[int] | None = None
    attested: Attested | None = None
    """What its files are verified by before they are loaded; None: it is a checkpoint, or not signed yet."""
    warning: str | None = Field(default=None, exclude=True)
    """What is told of it with each answer: that it is deprecated. Not of serving, which gets it without."""

    @property
    def steering(self) -> tuple[str, float, tuple[int, ...] | None]:
        """What of it is followed: rows whose experts have the same steering in the same order read the same model."""
        return self.z_sha256, self.weight, None if self.layers is None else tuple(self.layers)

    @property
    def is_whole(self) -> bool:
        """It is followed as it was trained."""
        return self.weight == 1 and self.layers is None


class SharedExpert(BaseModel):
    """An expert version of another organisation that answers: whose it is, and who uses it, by name."""

    model_config = ConfigDict(frozen=True)
    name: str
    owner_org_id: uuid.UUID
    version_id: uuid.UUID
    user: str


class Label(BaseModel):
    """An expert that a classifier knows, and the candidate that it stands for, None where none of it is a candidate."""

    model_config = ConfigDict(frozen=True)
    label: str
    candidate: str | None


class Classifier(BaseModel):
    """The expert that the router ``classifier`` asks, and what its answers mean, in the order in which it learned them.

    After the ``labels`` comes one more answer: that the prompt is for none of them.
    """

    model_config = ConfigDict(frozen=True)
    expert: ExpertReference
    labels: list[Label]


class Answering(BaseModel):
    """Who answers: ``experts``, each with its weight, none of them the base; or one of ``candidates``.

    ``candidates`` is None unless ``router`` shall choose among them, by centroid where it is None; ``experts`` then is
    empty. ``others`` are the project's experts that may not answer: a prompt that is theirs is not a candidate's.
    ``classifier`` is for the router of that name. ``release`` names the release version that all of this comes from.
    """

    model_config = ConfigDict(frozen=True)
    experts: list[ExpertReference] = []
    candidates: list[ExpertReference] | None = None
    others: list[ExpertReference] = []
    router: Router | None = None
    classifier: Classifier | None = None
    release: str | None = None
