"""What a person sees: text and tables, rich at a terminal, plain otherwise, JSON on demand.

Everything that is shown came from data, a model or a person, so all of it goes through `safe` on its way
out: what reaches the terminal is printable characters and line ends, and colours that we chose.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console

Style = Literal["", "bold", "dim", "green", "yellow", "red", "cyan"]

_TAB = "    "


def safe(value: object) -> str:
    r"""`value` as text of printable characters and line ends; the rest is written out, such as \x1b.

    That covers escape sequences, control characters, the marks that reorder text, and invisible ones.
    """
    text = str(value).replace("\r\n", "\n").replace("\t", _TAB)
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(map(_safe_character, text))


def _safe_character(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return _written_out(character)


def _written_out(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def one_line(value: object) -> str:
    """`safe` text on one line, for a cell of a table."""
    return " ".join(safe(value).split())


def shortened(value: object, limit: int) -> str:
    """`one_line` text of at most `limit` columns, with an ellipsis where it was cut."""
    text = one_line(value)
    if columns(text) <= limit:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) >= limit:
            break
        kept += character
    return kept + "…"


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    return sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """`value` as JSON whose text is printable: what is not is escaped the way JSON escapes it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=_plain)
    # Line ends are layout here; those inside texts are escaped already. What else cannot be printed can
    # only stand inside a text, where an escape means the same.
    return "".join(c if c == "\n" or c.isprintable() else _json_escape(c) for c in text)


def _plain(value: Any) -> Any:
    """Values that JSON has no kind of its own for: times in ISO 8601, durations in seconds."""
    match value:
        case date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case PurePath():
            return str(value)
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value)
    msg = f"a {type(value).__name__} cannot be shown as JSON"
    raise TypeError(msg)


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: its heading.
        right: whether its cells are numbers, aligned to the right.
        style: how its cells look at a terminal.
    """

    name: str
    right: bool = False
    style: Style = ""


class Screen:
    """Where a command writes its answer.

    Args:
        as_json: whether the answer shall be JSON and nothing else.
        stream: where it goes, standard output if None.
    """

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self.stream = sys.stdout if stream is None else stream
        self._console: Console | None = None

    @property
    def for_people(self) -> bool:
        """Whether a person is looking: colours and boxes make sense."""
        return not self.as_json and self.stream.isatty()

    def data(self, value: Any) -> None:
        """Write the answer as JSON."""
        self.stream.write(as_json(value) + "\n")
        self.stream.flush()

    def record(self, value: Any) -> None:
        """Write one JSON value on one line, at once: one of many that come one after the other."""
        self.stream.write(as_json(value, indent=None) + "\n")
        self.stream.flush()

    def piece(self, text: object, style: Style = "") -> None:
        """Write the next piece of a text, at once and without a line end of its own."""
        clean = safe(text)
        if self.for_people and style:
            from rich.text import Text  # noqa: PLC0415 - only for people at a terminal

            self._rich().print(Text(clean, style=style), soft_wrap=True, end="")
        else:
            self.stream.write(clean)
        self.stream.flush()

    def line(self, text: object = "", style: Style = "") -> None:
        """Write one text, which may have several lines."""
        clean = safe(text)
        if self.for_people and style:
            from rich.text import Text  # noqa: PLC0415 - only for people at a terminal

            self._rich().print(Text(clean, style=style), soft_wrap=True)
        else:
            self.stream.write(clean + "\n")
        self.stream.flush()

    def heading(self, text: object) -> None:
        """Write a heading, with an empty line before it."""
        self.line()
        self.line(text, "bold")

    def items(self, texts: Iterable[object], bullet: str = "-") -> None:
        """Write a list; the further lines of an item are indented under its first."""
        for text in texts:
            self.line(f"  {bullet} " + safe(text).replace("\n", "\n    "))

    def block(self, text: object, style: Style = "") -> None:
        """Write a text indented, so that it cannot be taken for something the program says."""
        self.line("\n".join(f"  | {line}" for line in safe(text).split("\n")), style)

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Write names and values, the values in one column."""
        shown = [(safe(name), one_line(value)) for name, value in pairs]
        wide = max((columns(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"  {_padded(name, wide)}  {value}")

    def table(self, heads: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Write a table; cells are cut to one line each."""
        cells = [[one_line("" if value is None else value) for value in row] for row in rows]
        if self.for_people:
            self._rich_table(heads, cells)
        else:
            self._plain_table(heads, cells)
        self.stream.flush()

    def _plain_table(self, heads: Sequence[Column], cells: list[list[str]]) -> None:
        named = [[head.name for head in heads], *cells]
        wide = [max(columns(row[i]) for row in named) for i in range(len(heads))]
        for row in named:
            line = "  ".join(
                _padded(cell, wide[i], right=heads[i].right) for i, cell in enumerate(row)
            ).rstrip()
            self.stream.write(line + "\n")

    def _rich_table(self, heads: Sequence[Column], cells: list[list[str]]) -> None:
        from rich import box  # noqa: PLC0415 - only for people at a terminal
        from rich.table import Table  # noqa: PLC0415 - only for people at a terminal
        from rich.text import Text  # noqa: PLC0415 - only for people at a terminal

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for head in heads:
            table.add_column(Text(head.name), justify="right" if head.right else "left", style=head.style)
        for row in cells:
            table.add_row(*map(Text, row))
        self._rich().print(table)

    def console(self) -> Console:
        """The terminal as rich knows it, for what moves; only `for_people`."""
        return self._rich()

    def _rich(self) -> Console:
        if self._console is None:
            from rich.console import Console  # noqa: PLC0415 - only for people at a terminal

            self._console = Console(file=self.stream, markup=False, highlight=False, emoji=False)
        return self._console


def _padded(text: str, wide: int, *, right: bool = False) -> str:
    space = " " * (wide - columns(text))
    return space + text if right else text + space
