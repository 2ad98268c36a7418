"""What type checkers see of a service: its own signature without the session, and the joining form.

Nothing here runs. mypy checks it with the rest of the tests: a type that is not as asserted is an error, and
so is an ignored error that no longer is one.
"""

from decimal import Decimal
from typing import assert_type
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from outbox import AsyncOutbox, Outbox, emit
from tests.write.orders import step

outbox = Outbox(sessionmaker())
async_outbox = AsyncOutbox(async_sessionmaker())


@outbox.transaction
def place_order(session: Session, customer_id: UUID, total: Decimal) -> UUID:
    return customer_id


@outbox.transaction(isolation="serializable", attempts=5)
def settle(session: Session, total: Decimal = Decimal(0)) -> int:
    return 1


@async_outbox.transaction
async def place_later(session: AsyncSession, total: Decimal) -> UUID:
    return uuid4()


@async_outbox.transaction(attempts=5)
async def settle_later(session: AsyncSession) -> int:
    return 1


def plainly(session: Session) -> None:
    assert_type(place_order(uuid4(), Decimal(1)), UUID)
    assert_type(place_order(uuid4(), total=Decimal(1)), UUID)
    assert_type(place_order(uuid4(), Decimal(1), session=session), UUID)
    assert_type(settle(total=Decimal(1)), int)
    assert_type(emit(session, step(1)), UUID)
    place_order("not a customer", Decimal(1))  # type: ignore[call-overload]
    place_order(uuid4())  # type: ignore[call-overload]
    emit(session, step(1), heeders={})  # type: ignore[call-overload]


async def awaited(session: AsyncSession) -> None:
    assert_type(await place_later(Decimal(1)), UUID)
    assert_type(await place_later(Decimal(1), session=session), UUID)
    assert_type(await settle_later(), int)
    assert_type(await emit(session, step(1)), UUID)
    emit(session, step(1))  # type: ignore[unused-coroutine]
    place_later(Decimal(1))  # type: ignore[unused-coroutine]
