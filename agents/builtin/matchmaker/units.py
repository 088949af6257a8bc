"""Units of what people give: their names in English and Spanish, and exact conversion within one dimension.

Sources of the factors: the pound is exactly 0.45359237 kg and the foot exactly 0.3048 m (international yard
and pound agreement of 1959; NIST Handbook 44, appendix C). The US gallon is 231 cubic inches, so a US pint is
exactly 473.176473 ml; the imperial gallon is exactly 4.54609 l (UK Weights and Measures Act 1985), so an
imperial pint is exactly 568.26125 ml. A pint of which nobody says whose is a dimension of its own: it
converts to quarts and gallons, which hold 2 and 8 pints in both systems, and to nothing else.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from importlib import resources

from agents.builtin.matchmaker.text import plain_words


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure.

    Attributes:
        name: how one of it is written.
        plural: how several are written.
        dimension: units convert only within one.
        factor: how many of the dimension's base unit it is, exactly.
        grain: the smallest step that is worth handing over, in this unit; 1 for what cannot be cut.
    """

    name: str
    plural: str
    dimension: str
    factor: Fraction
    grain: Decimal

    def of(self, quantity: Decimal) -> str:
        """A quantity for people: "1 piece", "2.5 kg"."""
        return f"{written(quantity)} {self.name if quantity == 1 else self.plural}"


@lru_cache(maxsize=1)
def _units() -> dict[str, Unit]:
    """Every spelling and its unit, from `units.csv` (accents left out, `_` for a space)."""
    text = resources.files(__package__).joinpath("units.csv").read_text(encoding="utf-8")
    found: dict[str, Unit] = {}
    for row in csv.DictReader(text.splitlines()):
        factor, grain = Fraction(row["factor"]), Decimal(row["grain"])
        unit = Unit(row["name"], row["plural"], row["dimension"], factor, grain)
        found |= {word.replace("_", " "): unit for word in row["words"].split()}
    return found


UNIT_WORDS = frozenset(_units())
"""Every spelling of every unit, accents left out."""

PIECE = _units()["piece"]


class UnknownUnit(ValueError):
    """No unit of that name; the message names those that look alike."""


def parse_unit(text: str) -> Unit:
    """The unit that `text` names; an empty text means pieces.

    Raises:
        UnknownUnit: there is none of that name.
    """
    key = " ".join(plain_words(text))
    if not key:
        return PIECE
    unit = _units().get(key)
    if unit is None:
        near = get_close_matches(key, UNIT_WORDS, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "known are kg, g, lb, oz, l, ml, pieces, boxes, hours, ..."
        )
        msg = f"{text.strip()!r} is no unit that is known here; {hint}"
        raise UnknownUnit(msg)
    return unit


def convert(quantity: Decimal | Fraction, unit: Unit, to: Unit) -> Fraction:
    """`quantity` of `unit` in the unit `to`, exactly.

    Raises:
        ValueError: the two are of different dimensions.
    """
    if unit.dimension != to.dimension:
        msg = f"{unit.plural} ({unit.dimension}) cannot be made into {to.plural} ({to.dimension})"
        raise ValueError(msg)
    return Fraction(quantity) * unit.factor / to.factor


def floor_to_grain(quantity: Fraction, unit: Unit) -> Decimal:
    """The largest whole number of grains of `unit` that is not more than `quantity`."""
    return math.floor(quantity / Fraction(unit.grain)) * unit.grain


def ceil_to_grain(quantity: Fraction, unit: Unit) -> Decimal:
    """The smallest whole number of grains of `unit` that is not less than `quantity`."""
    return math.ceil(quantity / Fraction(unit.grain)) * unit.grain


def written(quantity: Decimal) -> str:
    """A quantity as people write it: no exponent, no zeros at the end."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
