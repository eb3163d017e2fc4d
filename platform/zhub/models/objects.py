"""What is going on with objects of the store whose keys several rows may share."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from zhub.models.base import Base


class ObjectReservation(Base):
    """One key of the store: somebody is about to name it in a row, or the collection is removing it. Never both."""

    __tablename__ = "object_reservations"
    key: Mapped[str] = mapped_column(primary_key=True)
    kept_until: Mapped[datetime | None]
    removed_until: Mapped[datetime | None]
    """While this lies ahead the object is being removed; past, whoever did so has died."""
