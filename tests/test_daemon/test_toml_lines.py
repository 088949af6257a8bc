"""Every key of a TOML file is found on its line, whatever the file looks like."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.settings.toml_lines import key_lines

EXAMPLE = '''
# a comment with [brackets] and = signs
top = 1
dotted.key.here = 2 # trailing
"quoted key" = """
[not.a.table]
not_a_key = 1
four quotes: """"
'literal "key"' = \'\'\'
also = not a key
\'\'\'

[web]  # header comment
port = 8484
hosts = [ # a list over lines
  "one", # with [comments]
  'two]',
  ["inner", 3],
]
inline = { a = 1, b = { c = "}" }, "d.e" = [1, 2] }

[ agents . "my agent" ]
every = 1979-05-27 07:32:00

[[rule]]
name = "first"
[[rule.step]]
do = 1
[[rule.step]]
do = 2
[[rule]]
name = "second"
[[rule.step]]
do = 3
[rule.more]
x = "\\u0022]"
'''

LINES = {
    ("top",): 3,
    ("dotted",): 4,
    ("dotted", "key", "here"): 4,
    ("quoted key",): 5,
    ('literal "key"',): 9,
    ("web",): 13,
    ("web", "port"): 14,
    ("web", "hosts"): 15,
    ("web", "hosts", 0): 16,
    ("web", "hosts", 1): 17,
    ("web", "hosts", 2, 1): 18,
    ("web", "inline", "b", "c"): 20,
    ("web", "inline", "d.e", 1): 20,
    ("agents", "my agent"): 22,
    ("agents", "my agent", "every"): 23,
    ("rule", 0, "name"): 26,
    ("rule", 0, "step", 0, "do"): 28,
    ("rule", 0, "step", 1, "do"): 30,
    ("rule", 1, "name"): 32,
    ("rule", 1, "step", 0, "do"): 34,
    ("rule", 1, "more", "x"): 36,
}


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(paths_of(item, (*path, key)) for key, item in inner)) if path or inner else set()


def test_each_key_of_a_file_with_everything_in_it_is_found_on_its_line() -> None:
    found = key_lines(EXAMPLE)
    assert {path: found.get(path) for path in LINES} == LINES


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_value_that_tomllib_reads_has_a_line_and_nothing_else_has(line_end: str) -> None:
    text = EXAMPLE.replace("\n", line_end)
    assert set(key_lines(text)) == paths_of(tomllib.loads(text)) - {()}


@pytest.mark.parametrize("text", ["", "\n\n# only a comment", "a=1", "[a]", "a = [\n]\n", "x = {}\n"])
def test_small_files_are_read_to_their_end(text: str) -> None:
    assert set(key_lines(text)) == paths_of(tomllib.loads(text)) - {()}


KEYS = st.text(alphabet="ab-_1 .\"'#=[]{}é\\", min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(alphabet="ab\"'\\#]}[{,=\né", max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3), max_size=5)


def written(value: Any) -> str:
    """A value as TOML, its lists over several lines with comments between."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[ # ] comment\n" + "".join(f"  {written(item)},\n" for item in value) + "]"
    if isinstance(value, str) and "'" not in value and "\n" in value:
        return f"'''\n{value}'''"
    return json.dumps(value)


def document(table: dict[str, Any]) -> str:
    """A table as a TOML document: scalars first, then each inner table under its own header."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    text = "".join(f"{json.dumps(key)} = {written(value)} # = [x]\n" for key, value in plain.items())
    for key, inner in table.items():
        if isinstance(inner, dict):
            text += f"\n[ {json.dumps(key)} ] # [y]\n"
            text += "".join(f"{json.dumps(k)} = {written(v)}\n\n" for k, v in inner.items())
    return text


@given(TABLES)
def test_whatever_a_file_holds_each_key_stands_on_the_line_that_is_said(table: dict[str, Any]) -> None:
    text = document(table)
    lines = text.split("\n")
    found = key_lines(text)
    assert set(found) == paths_of(tomllib.loads(text)) - {()}
    for path, line in found.items():
        if isinstance(path[-1], str):
            assert re.search(re.escape(json.dumps(path[-1])) + r"\s*[\]=]", lines[line - 1]), (path, line)
