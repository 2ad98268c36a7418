"""What a request may say, checked before any of it reaches the domain."""

from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

CENT = Decimal("0.01")

Amount = Annotated[
    Decimal,
    Field(gt=0, max_digits=12, decimal_places=2),
    AfterValidator(lambda amount: amount.quantize(CENT)),
]
"""Money: above zero, at most two decimals. "9.9" and 9.90 are the same amount."""


class Request(BaseModel):
    """A misspelt field is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlaceOrder(Request):
    customer_id: UUID
    total: Amount
    order_id: UUID | None = None


class ChangeOrder(Request):
    total: Amount
