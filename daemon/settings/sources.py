"""Where a value of the configuration came from, and the file's own text behind it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.errors import SettingsError, SettingsProblem
from daemon.settings.toml_lines import KeyPath, key_lines

_POSITION = re.compile(
    r"^(?P<what>.*) \((?:at line (?P<line>\d+), column (?P<column>\d+)|at end of document)\)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntaxProblem(SettingsProblem):
    """A place where the file is no TOML.

    Attributes:
        column: column in the line, counted from 1.
    """

    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One setting that the environment gives.

    Attributes:
        name: the variable.
        value: what it says, already turned into the setting's kind where that was possible.
    """

    name: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a configuration was made from.

    Attributes:
        file: the file that was read, None when there is none.
        table: its content.
        lines: the line of each key in it.
        variables: what the environment sets, by the key that it sets.
    """

    file: Path | None = None
    table: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    variables: Mapping[KeyPath, Variable] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str) -> SettingsProblem:
        """A problem with the value at `path`, with the place that the value came from."""
        key = dotted(path)
        for length in range(len(path), 0, -1):
            part = path[:length]
            if part in self.variables:
                name = self.variables[part].name
                return SettingsProblem(key=key, message=message, source="environment", variable=name)
            if part in self.lines:
                return SettingsProblem(key=key, message=message, source=str(self.file), line=self.lines[part])
        return SettingsProblem(key=key, message=message, source=str(self.file or "default"))

    def problem_in_file(self, path: KeyPath, message: str) -> SettingsProblem:
        """A problem with what the file itself says at `path`, whatever else counts in its stead."""
        line = self.lines.get(path)
        return SettingsProblem(key=dotted(path), message=message, source=str(self.file), line=line)


def dotted(path: KeyPath) -> str:
    """A path as it is written in TOML: `web.port`, `web.allowed_hosts[0]`, `agents."my agent".every`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if plain else '"' + part.replace('"', '\\"') + '"')
    return text


def value_at(table: Mapping[str, Any], path: KeyPath) -> Any:
    """The value at `path` in nested tables and lists.

    Raises:
        KeyError: there is none.
    """
    found: Any = table
    for part in path:
        try:
            found = found[part]
        except (IndexError, TypeError) as error:
            raise KeyError(part) from error
    return found


def read_file(path: Path) -> Sources:
    """Read a configuration file.

    Raises:
        SettingsError: it cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, "is not UTF-8; save the file as UTF-8 text", line) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([_syntax_problem(path, text, str(error))]) from error
    except RecursionError as error:
        raise _unreadable(path, "its tables are nested too deeply") from error
    return Sources(file=path, table=table, lines=key_lines(text))


def _unreadable(path: Path, message: str, line: int | None = None) -> SettingsError:
    return SettingsError([SettingsProblem(key="", message=message, source=str(path), line=line)])


def _syntax_problem(path: Path, text: str, message: str) -> SettingsProblem:
    """The decoder's message, whose position is inside its text, as a problem with line and column."""
    found = _POSITION.match(message)
    lines = text.split("\n")
    line = int(found["line"]) if found and found["line"] else len(lines)
    column = int(found["column"]) if found and found["column"] else len(lines[-1]) + 1
    what = found["what"] if found else message
    return SyntaxProblem(
        key="", message=f"not valid TOML: {what}", source=str(path), line=line, column=column
    )
