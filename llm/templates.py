"""Prompt templates: files with gaps, found by name, filled in with data, and known by their version.

    templates = Templates(Path("config/prompts/pantry"), Path("pantry/prompts"), owner="pantry")
    prompt = templates.render("dish", {"item": "tomatoes"})
    response = await client.chat(prompt.messages(), template=prompt.template)

A template is a file `NAME.j2`: jinja2 text whose blocks `system` and `user` are the two parts of a prompt;
without blocks all of it is the user's part. Data is printed with the filter `untrusted`, and only with it.
A name that begins with `_` is a part that others include.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import TemplateError
from llm.types import LLMMessage
from llm.untrusted import wrapped

if TYPE_CHECKING:
    from llm.compiled import Compiled, Source, Variables

SUFFIX = ".j2"
NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
"""A template's name: safe as the name of a file, so that no name leads out of the folders."""

MAX_BYTES = 64 * 1024
VERSION_DIGITS = 12

_Stamp = tuple[str, int, int, int]  # path, inode, size, time of the last change: another file has another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A template with its gaps filled: what a model is sent.

    Attributes:
        system: how the model shall behave, None without such a block.
        user: what it is asked.
        name: the template, with its owner: "matchmaker/pair".
        version: the first 12 hex digits of the SHA-256 of its source and of all that it includes.
    """

    system: str | None
    user: str
    name: str
    version: str

    @property
    def template(self) -> str:
        """Name and version, as calls and records name it: "matchmaker/pair@1a2b3c4d5e6f"."""
        return f"{self.name}@{self.version}"

    def messages(self) -> list[LLMMessage]:
        """The turns of a conversation that begins with it."""
        system = [LLMMessage("system", self.system)] if self.system else []
        return [*system, LLMMessage("user", self.user)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A template as it is in its file now.

    Attributes:
        name: with its owner: "matchmaker/pair".
        version: see `Prompt.version`.
        path: its file.
        source: its text.
        parts: the names of what it includes.
        variables: what it wants to be given.
    """

    name: str
    version: str
    path: Path
    source: str
    parts: tuple[str, ...]
    variables: Variables


class Templates:
    """The templates of one owner; each use looks whether a file was changed since, and reads it then.

    Its methods read files and block meanwhile; inside an event loop call them in a thread.

    Args:
        folders: where they are looked for; the first folder that has a name wins.
        owner: whose they are, the first half of their full names; empty for none.
    """

    def __init__(self, *folders: Path, owner: str = "") -> None:
        self.folders = folders
        self.owner = owner
        self._kept: dict[str, tuple[tuple[_Stamp, ...], Compiled]] = {}

    def names(self) -> tuple[str, ...]:
        """Every template's name without its owner, sorted; parts, which begin with `_`, are none.

        Raises:
            TemplateError: a folder cannot be read.
        """
        found: set[str] = set()
        for folder in self.folders:
            try:
                found.update(
                    path.name.removesuffix(SUFFIX) for path in folder.iterdir() if path.suffix == SUFFIX
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                msg = f"{folder} cannot be read: {error.strerror}"
                raise TemplateError(msg) from error
        return tuple(sorted(name for name in found if NAME.fullmatch(name) and not name.startswith("_")))

    def path(self, name: str) -> Path:
        """The file of a template or part.

        Raises:
            TemplateError: there is none.
        """
        return Path(self._stamp(name)[0])

    def get(self, name: str) -> PromptTemplate:
        """What there is to know about a template.

        Raises:
            TemplateError: there is none, or it is no template; the message names file and line.
        """
        compiled = self._compiled(name)
        return PromptTemplate(
            name=self._full(name),
            version=_version(compiled),
            path=compiled.sources[name].path,
            source=compiled.sources[name].text,
            parts=tuple(part for part in compiled.sources if part != name),
            variables=compiled.variables,
        )

    def render(self, name: str, variables: Mapping[str, Any]) -> Prompt:
        """Fill in a template.

        Args:
            name: the template.
            variables: the values of its gaps: texts, numbers, moments, lists and mappings of such. Every
                text counts as data, which only the filter `untrusted` prints, unless it is `Trusted`.

        Raises:
            TemplateError: there is no such template, or it cannot be filled in with these variables; the
                message names file, line and variable.
        """
        compiled = self._compiled(name)
        for variable in variables:
            if not variable.isidentifier() or variable.startswith("_"):
                msg = f"{self._full(name)}: {variable!r} cannot name a variable; use letters, digits and _"
                raise TemplateError(msg)
        texts = compiled.render({key: wrapped(value, key) for key, value in variables.items()})
        if not texts["user"]:
            msg = f"{compiled.sources[name].path}: nothing is asked, its text is empty"
            raise TemplateError(msg)
        return Prompt(
            system=texts.get("system") or None,
            user=texts["user"],
            name=self._full(name),
            version=_version(compiled),
        )

    def _full(self, name: str) -> str:
        return f"{self.owner}/{name}" if self.owner else name

    def _compiled(self, name: str) -> Compiled:
        stamps, kept = self._kept.get(name, ((), None))
        if kept is not None and stamps == tuple(map(self._stamp, kept.sources)):
            return kept
        from llm.compiled import Compiled  # noqa: PLC0415 - loads jinja2

        read: list[_Stamp] = []

        def reading(each: str) -> Source:
            source, stamp = self._read(each)
            read.append(stamp)
            return source

        compiled = Compiled(name, reading)
        self._kept[name] = (tuple(read), compiled)
        return compiled

    def _stamp(self, name: str) -> _Stamp:
        if not NAME.fullmatch(name):
            msg = f"{name!r} cannot be the name of a prompt template; use 1 to 64 of a-z, 0-9, _ and -"
            raise TemplateError(msg)
        for folder in self.folders:
            path = folder / f"{name}{SUFFIX}"
            try:
                return _stamp_of(path, path.lstat())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(path, error) from error
        raise self._unknown(name)

    def _read(self, name: str) -> tuple[Source, _Stamp]:
        from llm.compiled import Source  # noqa: PLC0415 - loads jinja2

        path = self.path(name)
        try:
            with open(path, "rb", opener=_carefully) as stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode):
                    msg = f"{path} is no file"
                    raise TemplateError(msg)
                data = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
        if len(data) > MAX_BYTES:
            msg = f"{path} has more than {MAX_BYTES:,} bytes; a prompt template is shorter"
            raise TemplateError(msg)
        try:
            return Source(name, path, data.decode("utf-8")), _stamp_of(path, found)
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
            raise TemplateError(msg) from error

    def _unknown(self, name: str) -> TemplateError:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        way = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
        places = ", ".join(map(str, self.folders)) or "no folder"
        return TemplateError(f"there is no prompt template {self._full(name)!r} in {places}; {way}")


def _carefully(path: str, flags: int) -> int:
    """Open no link, which could lead anywhere, and wait for nobody who would write to a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _stamp_of(path: Path, found: os.stat_result) -> _Stamp:
    return (str(path), found.st_ino, found.st_size, found.st_mtime_ns)


def _unreadable(path: Path, error: OSError) -> TemplateError:
    reason = "it is a link; put the file itself there" if error.errno == errno.ELOOP else error.strerror
    return TemplateError(f"{path} cannot be read: {reason}")


def _version(compiled: Compiled) -> str:
    """Of the sources, each kept apart from the next by its length: the template first, as it was read."""
    digest = hashlib.sha256()
    for source in compiled.sources.values():
        text = source.text.encode()
        digest.update(b"%d:" % len(text) + text)
    return digest.hexdigest()[:VERSION_DIGITS]
