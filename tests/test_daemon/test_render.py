"""What reaches the screen: readable tables, valid JSON, and never a control character of somebody else's."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.render import Column, Screen, as_json, columns, one_line, safe, shortened
from tests.support.terminal import COLOURS, at_a_terminal

NASTY = (
    "\x1b[2J\x1b]52;c;ZXZpbA==\x07 \x9b31m red \u202egnp.exe \u200b hidden \x00 \x7f \r over"
    " [bold]markup[/bold] :smile: \u2066a\u2069 \ud800 end"
)


def wrote(*, as_json: bool = False) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    return Screen(as_json=as_json, stream=stream), stream


def harmless(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


def test_what_would_act_on_a_terminal_is_written_out_instead() -> None:
    assert safe("\x1b[2Jhi\x07 \u202eabc") == "\\x1b[2Jhi\\x07 \\u202eabc"
    assert safe("line\r\nline\rover\tTab\u00a0x") == "line\nline\\x0dover    Tab x"
    assert safe("\U000e0041") == "\\U000e0041"


def test_ordinary_text_of_any_language_is_shown_as_it_is() -> None:
    for text in ("10 kg de tomates, piñón", "日本語", "Ærø – “ok”", "🍅", "a\nb"):
        assert safe(text) == text


@given(st.text())
def test_no_text_at_all_brings_a_control_character_to_the_screen(text: str) -> None:
    screen, stream = wrote()
    screen.line(text)
    screen.heading(text)
    screen.items([text])
    screen.block(text)
    screen.fields([(text, text)])
    screen.table([Column("a"), Column("b", right=True)], [(text, text)])
    assert harmless(stream.getvalue())


@given(
    st.recursive(
        st.none() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        st.lists,
        max_leaves=5,
    )
)
def test_json_is_printable_and_means_what_it_meant(value: Any) -> None:
    text = as_json({"value": value})
    assert harmless(text)
    assert json.loads(text) == {"value": value}


def test_json_knows_times_durations_and_paths_and_refuses_what_it_does_not_know() -> None:
    moment = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
    text = as_json(
        {"at": moment, "for": timedelta(minutes=2), "in": Path("/x"), "who": frozenset({"b", "a"})}
    )
    assert json.loads(text) == {
        "at": "2026-05-04T03:02:00+00:00",
        "for": 120.0,
        "in": "/x",
        "who": ["a", "b"],
    }
    with pytest.raises(TypeError, match="a object cannot be shown as JSON"):
        as_json(object())


def test_a_plain_table_is_aligned_even_with_wide_characters() -> None:
    screen, stream = wrote()
    screen.table([Column("id", right=True), Column("title")], [(7, "日本"), (12, "two\nlines"), (None, "x")])
    assert stream.getvalue() == "id  title\n 7  日本\n12  two lines\n    x\n"
    assert columns("日本") == 4


def test_a_block_is_marked_on_every_line_so_that_it_cannot_pass_for_the_programs_own_words() -> None:
    screen, stream = wrote()
    screen.block("said\nApproved.")
    assert stream.getvalue() == "  | said\n  | Approved.\n"


def test_a_long_text_is_cut_with_an_ellipsis() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert columns(shortened("日本語日本語", 6)) <= 6
    assert one_line(" a\n\tb ") == "a b"


def test_at_a_terminal_there_are_colours_and_boxes_and_still_nothing_of_the_datas_own() -> None:
    code = (
        "from daemon.render import Column, Screen\n"
        f"nasty = {NASTY!r}\n"
        "screen = Screen()\n"
        "screen.line(nasty, 'red')\n"
        "screen.heading(nasty)\n"
        "screen.table([Column('head', style='bold'), Column('n', right=True)], [(nasty, 1)])\n"
    )
    status, text = at_a_terminal([sys.executable, "-W", "error", "-c", code])
    assert status == 0, text
    assert COLOURS.search(text), "the terminal got no colours"
    assert "─" in text, "the terminal got no table"
    plain = COLOURS.sub("", text)
    assert harmless(plain), repr(plain)
    assert "[bold]markup[/bold]" in "".join(plain.split("\n"))
