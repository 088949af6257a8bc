"""Text on its way out of a model, cut at markers that may come in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.engines.mlx_prefixes import common_length
from llm.engines.mlx_text import ENDED, TEXT, THINKING, TOOL, Splitter, fold_system, transcript

MARKERS = {
    TEXT: {"<think>": THINKING, "<call>": TOOL, "STOP": ENDED},
    THINKING: {"</think>": TEXT},
    TOOL: {"</call>": TEXT},
}
WHOLE = "Well <think>is it?</think>Yes <b>. <call>{1}</call>Done. STO no STOP never seen"


def parts_of(pieces: list[str]) -> list[tuple[str, str]]:
    """What the pieces give, neighbours of one kind put together."""
    splitter = Splitter(MARKERS)
    found = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
    joined: list[tuple[str, str]] = []
    for kind, text in found:
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


@given(st.lists(st.integers(1, 9), min_size=len(WHOLE)))
def test_the_parts_are_the_same_however_the_text_is_cut(sizes: list[int]) -> None:
    pieces, rest = [], WHOLE
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parts_of(pieces) == [
        (TEXT, "Well "),
        (THINKING, "is it?"),
        (TEXT, "Yes <b>. "),
        (TOOL, "{1}"),
        (TEXT, "Done. STO no "),
    ]


def test_what_may_become_a_marker_is_held_back_and_given_out_when_it_is_none() -> None:
    splitter = Splitter(MARKERS)
    assert splitter.feed("a <thi") == [(TEXT, "a ")]
    assert splitter.feed("s") == [(TEXT, "<this")]
    assert splitter.feed(" ST") == [(TEXT, " ")]
    assert splitter.flush() == [(TEXT, "ST")]


def test_text_without_markers_passes_at_once() -> None:
    assert Splitter({}).feed("<think> STOP") == [(TEXT, "<think> STOP")]


def test_of_two_markers_that_begin_at_one_place_the_longer_counts() -> None:
    assert Splitter({TEXT: {"ab": ENDED, "abc": THINKING}}).feed("xabcy") == [(TEXT, "x"), (THINKING, "y")]


def test_after_the_end_nothing_comes() -> None:
    splitter = Splitter(MARKERS)
    assert splitter.feed("a STOP b") == [(TEXT, "a ")]
    assert splitter.kind == ENDED
    assert splitter.feed("more") == splitter.flush() == []


@pytest.mark.parametrize(
    ("one", "other", "length"), [("", "abc", 0), ("abc", "abc", 3), ("abcd", "abxd", 2), ("x", "abc", 0)]
)
def test_the_common_beginning_of_two_lists_is_found(one: str, other: str, length: int) -> None:
    assert common_length(list(map(ord, one)), list(map(ord, other))) == length


def test_a_transcript_names_the_speakers_and_hands_over_to_the_model() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert transcript(turns) == "System: Be brief.\n\nUser: Hello\n\nAssistant:"


def test_the_system_turn_is_folded_into_the_first_question_and_only_there() -> None:
    system, user = {"role": "system", "content": "A"}, {"role": "user", "content": "B"}
    assert fold_system([system, user]) == [{"role": "user", "content": "A\n\nB"}]
    assert fold_system([user]) == [user]
    assert fold_system([system]) == [system]
