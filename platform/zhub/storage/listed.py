"""An object of a store as a listing tells of it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredObject:
    """Its key, its size, and when it was stored, by the store's clock."""

    key: str
    size_bytes: int
    modified_at: datetime
