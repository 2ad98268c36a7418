"""The outbox as one writes it first: a mapped row beside the domain's."""

from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class NaiveBase(DeclarativeBase):
    pass


class Message(NaiveBase):
    """A flush inserts it before it updates Zone: SQLAlchemy sorts unrelated mappers by module and name."""

    __tablename__ = "outbox_event"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    aggregatetype: Mapped[str]
    aggregateid: Mapped[str]
    type: Mapped[str]
    payload: Mapped[bytes]
