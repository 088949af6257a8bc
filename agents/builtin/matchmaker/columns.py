"""Which column of a table means what: headings in English and Spanish, whatever their case, accents and order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agents.builtin.matchmaker.text import plain_words
from agents.errors import SourceError

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

HEADINGS: dict[Field, tuple[str, ...]] = {
    "id": ("id", "ref", "reference", "code", "number", "no", "n", "nº", "codigo", "referencia", "numero"),
    "item": ("item", "what", "thing", "article", "product", "offer", "need", "articulo", "producto", "que", "cosa", "oferta", "necesidad"),
    "quantity": ("quantity", "qty", "amount", "how much", "how many", "cantidad", "cuanto", "cuantos"),
    "unit": ("unit", "units", "measure", "unidad", "unidades", "medida"),
    "place": ("place", "where", "location", "area", "lugar", "sitio", "donde", "zona", "ubicacion"),
    "from": ("from", "available from", "start", "desde", "disponible desde", "inicio"),
    "until": ("until", "to", "available until", "end", "best before", "hasta", "disponible hasta", "fin"),
    "times": ("times", "days", "when", "hours", "opening hours", "horario", "dias", "cuando", "horas"),
    "dietary": ("dietary", "diet", "contains", "labels", "allergens", "limits", "restrictions", "allergies",
                "dieta", "contiene", "etiquetas", "alergenos", "limites", "restricciones", "alergias"),
    "person": ("person", "name", "contact", "who", "persona", "nombre", "contacto", "quien"),
    "transport": ("transport", "carry", "carries", "delivery", "collection", "transporte", "reparto", "entrega", "recogida"),
    "notes": ("notes", "note", "comments", "remarks", "notas", "comentarios", "observaciones"),
}  # fmt: skip
"""The headings of each field, plain."""

REQUIRED: tuple[Field, ...] = ("id", "item", "quantity")
SEVERAL: frozenset[Field] = frozenset({"dietary", "notes"})
"""Fields that may be spread over several columns ("contains" and "labels")."""

_FIELDS: dict[str, Field] = {heading: field for field, headings in HEADINGS.items() for heading in headings}


def field_of(heading: str) -> Field | None:
    """The field that a heading names, None when the column is one of somebody's own."""
    return _FIELDS.get(" ".join(plain_words(heading)))


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
            names = ", ".join(repr(name) for name in HEADINGS[field][:4])
            msg = f"{where}: there is no column for the {field}; name one of them {names}. The columns are: {', '.join(header)}"
            raise SourceError(msg)
    for field in HEADINGS:
        columns = [n for n, found in enumerate(fields) if found == field]
        if len(columns) > 1 and field not in SEVERAL:
            names = " and ".join(f"{header[n]!r} (column {n + 1})" for n in columns)
            msg = f"{where}: {names} both mean the {field}; rename one of them"
            raise SourceError(msg)
    return fields
