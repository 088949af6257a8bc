"""Which column of a table means what: English and Spanish headings in any case, accents or not, any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from agents.builtin.matchmaker.text import plain_words
from agents.builtin.matchmaker.vocabulary import vocabulary
from agents.errors import SourceError
from agents.fence import clean

Field = Literal[
    "id",
    "item",
    "quantity",
    "unit",
    "place",
    "from",
    "until",
    "times",
    "dietary",
    "person",
    "transport",
    "notes",
]

FIELDS: tuple[Field, ...] = get_args(Field)
REQUIRED: tuple[Field, ...] = ("id", "item", "quantity")
SEVERAL: frozenset[Field] = frozenset({"dietary", "notes"})
"""Fields that may be spread over several columns ("contains" and "labels")."""


def field_of(heading: str) -> Field | None:
    """The field that a heading names, None when the column is one of somebody's own."""
    found = vocabulary().headings.get(" ".join(plain_words(heading)))
    return next((field for field in FIELDS if field == found), None)


def fields_of(header: Sequence[str], where: str) -> list[Field | None]:
    """The field of each column.

    Args:
        header: the headings.
        where: file and line, for the error.

    Raises:
        SourceError: a required column is missing, or two columns mean the same.
    """
    fields = [field_of(heading) for heading in header]
    for field in REQUIRED:
        if field not in fields:
            headings = [heading for heading, found in vocabulary().headings.items() if found == field]
            names = ", ".join(repr(heading) for heading in headings[:4])
            msg = (
                f"{where}: there is no column for the {field}; name one of them {names}. "
                f"The columns are: {clean(', '.join(header), 300)}"
            )
            raise SourceError(msg)
    for field in FIELDS:
        columns = [n for n, found in enumerate(fields) if found == field]
        if len(columns) > 1 and field not in SEVERAL:
            names = " and ".join(f"{header[n]!r} (column {n + 1})" for n in columns)
            msg = f"{where}: {names} both mean the {field}; rename one of them"
            raise SourceError(msg)
    return fields
