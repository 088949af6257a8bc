"""The payload of a match: what `apply` does, as a person may edit it."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from agents.builtin.matchmaker.units import Unit, convert, parse_unit, written

Carrier = Literal["giver", "receiver", "nobody", "to agree"]
Amount = Annotated[
    Decimal,
    Field(gt=0, max_digits=18, decimal_places=9, allow_inf_nan=False),
    PlainSerializer(written, return_type=str, when_used="json"),
]
"""An exact quantity; JSON carries it as a text, because its numbers are not exact."""


class MatchPayload(BaseModel):
    """One offer serves one need, with so much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offer_id: str = Field(min_length=1, description="the id of the offer")
    need_id: str = Field(min_length=1, description="the id of the need")
    item: str = Field(description="what is given, as the offer says it")
    needed: str = Field(description="what is needed, as the need says it")
    quantity: Amount = Field(description="how much the need gets, in its unit")
    unit: str = Field(description="the unit of the need")
    offer_quantity: Amount = Field(description="how much is taken from the offer, in its unit")
    offer_unit: str = Field(description="the unit of the offer")
    place: str = Field(description="where it is handed over; empty when that is to be agreed")
    when: str = Field(description="when both can")
    window_from: str | None = Field(description="the earliest moment, UTC (ISO 8601); null for now")
    window_until: str | None = Field(description="the latest moment, UTC (ISO 8601); null for always")
    carrier: Carrier = Field(description="who carries it")
    giver: str = Field(description="the person of the offer")
    receiver: str = Field(description="the person of the need")

    @field_validator("quantity", "offer_quantity", mode="before")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        """A number of JSON means what it says: 0.1 is a tenth."""
        return str(value) if isinstance(value, float) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Both quantities are the same amount, up to the smallest step of their units."""
        need, offer = parse_unit(self.unit), parse_unit(self.offer_unit)
        taken = convert(self.offer_quantity, offer, need)
        step = Fraction(need.grain) + convert(offer.grain, offer, need)
        allowed = step if offer != need else 0
        if abs(taken - Fraction(self.quantity)) > allowed:
            msg = (
                f"quantity is {need.of(self.quantity)}, offer_quantity is {offer.of(self.offer_quantity)}: "
                "that is not the same amount; change both"
            )
            raise ValueError(msg)
        return self

    def need_unit(self) -> Unit:
        """The unit of the need."""
        return parse_unit(self.unit)

    def giver_unit(self) -> Unit:
        """The unit of the offer."""
        return parse_unit(self.offer_unit)
