"""Quantities as people type them: decimal point or comma, perhaps with the unit; and written back so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_CELL = re.compile(r"\s*(?P<number>[0-9][0-9.,'’ \u00a0\u202f]*[0-9]|[.,]?[0-9]+)(?P<rest>[^0-9]*)")
_SPACES = re.compile(r"['’ \u00a0\u202f]")
_GROUPS = re.compile(r"[0-9]{1,3}([.,][0-9]{3})+")
MAX_DIGITS = 12
"""Most digits of a quantity; more is a telephone number in the wrong column."""
MAX_DECIMALS = 6
"""Most digits after the decimal mark."""
LARGEST = 10**MAX_DIGITS
"""Every quantity is less than this."""


class BadQuantity(ValueError):
    """The text is no quantity; the message says what would be one."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity found in a cell.

    Attributes:
        value: the number, exactly.
        start: where the number begins in the cell.
        end: where it ends.
        mark: the decimal mark it uses, None without one.
        decimals: digits after the mark.
        unit: what stands after the number.
    """

    value: Decimal
    start: int
    end: int
    mark: str | None
    decimals: int
    unit: str


def parse_quantity(cell: str) -> Quantity:
    """The quantity in `cell`, such as "2", "2.5", "2,5" or "2,5 kg".

    Raises:
        BadQuantity: there is none, it is negative, or it can be read in two ways.
    """
    found = _CELL.fullmatch(cell)
    if found is None:
        if not cell.strip():
            msg = "the quantity is missing; write a number such as 2 or 2.5"
        elif cell.strip().startswith(("-", "−")):
            msg = f"{cell.strip()!r} is less than nothing; write a number such as 2 or 2.5"
        else:
            msg = f"{cell.strip()!r} is no quantity; write a number such as 2 or 2.5"
        raise BadQuantity(msg)
    text = found["number"]
    whole, mark, decimals = _split(text)
    if len(whole) + len(decimals) > MAX_DIGITS:
        msg = f"{text!r} has more than {MAX_DIGITS} digits; is it a telephone number?"
        raise BadQuantity(msg)
    if len(decimals) > MAX_DECIMALS:
        msg = f"{text!r} has more than {MAX_DECIMALS} decimals; round it"
        raise BadQuantity(msg)
    value = Decimal(f"{whole or '0'}.{decimals or '0'}")
    return Quantity(
        value, found.start("number"), found.end("number"), mark, len(decimals), found["rest"].strip()
    )


def _split(text: str) -> tuple[str, str | None, str]:
    """Whole digits, decimal mark and decimals of a number."""
    bare = _SPACES.sub("", text)
    marks = [c for c in bare if c in ".,"]
    if not marks:
        return bare, None, ""
    if len(set(marks)) == 2 and marks.count(marks[-1]) == 1:
        whole, _, decimals = bare.rpartition(marks[-1])
        if _GROUPS.fullmatch(whole):
            return whole.translate({ord("."): None, ord(","): None}), marks[-1], decimals
    elif len(marks) == 1:
        whole, _, decimals = bare.partition(marks[0])
        if len(decimals) == 3 and whole.strip("0"):
            msg = (
                f"{text!r} can be read as {whole}.{decimals} or as {whole}{decimals}; write "
                f"{whole}.{decimals}0 or {whole}{decimals}"
            )
            raise BadQuantity(msg)
        return whole, marks[0], decimals
    elif _GROUPS.fullmatch(bare) and len(set(marks)) == 1:
        return bare.replace(marks[0], ""), None, ""
    msg = f"{text!r} is no number; write one such as 1250.5"
    raise BadQuantity(msg)


def replace_number(cell: str, value: Decimal, mark: str = ".", style: str | None = None) -> str:
    """`cell` with its number replaced by `value`, in the style the number had.

    Args:
        cell: the cell as it stands.
        value: the new number.
        mark: the decimal mark to use where the old number has none.
        style: a cell whose number of decimals to imitate instead of that of `cell`.
    """
    old = parse_quantity(cell)
    like = old if style is None else parse_quantity(style)
    number = number_text(value, like.mark or old.mark or mark, like.decimals)
    return cell[: old.start] + number + cell[old.end :]


def number_text(value: Decimal, mark: str = ".", decimals: int = 0) -> str:
    """`value` with at least `decimals` decimals, never in a form that `parse_quantity` finds ambiguous."""
    whole, _, found = f"{value:f}".partition(".")
    found = found.rstrip("0").ljust(decimals, "0")
    if len(found) == 3 and whole.strip("0"):
        found += "0"
    return f"{whole}{mark}{found}" if found else whole
