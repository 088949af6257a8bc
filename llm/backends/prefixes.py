"""The fixed beginning of prompts, kept as llama.cpp's own state on disk: read once, not after every sleep.

An agent's system prompt, and what its template says before anything changes, is the same at each run; the
engine has forgotten it by then, because it slept or was started anew. So the state after that beginning is
saved once (24 kB per token with the small model), and restored before the first prompt that begins so.
Only the beginning is saved, nothing of what follows it.

A file is named by hashes; its text is not kept. llama.cpp aborts on a damaged state file, so the name holds
the content's hash too, and a file is checked before it is handed over.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from llm.backends.pulled import make_private_folders
from llm.errors import LLMError
from llm.types import LLMRequest
from llm.wire.openai import chat_body
from llm.wire.takes import Takes

MOST_FILES = 8
MOST_BYTES = 256 * 1024 * 1024

WORTH_CHARACTERS = 600
"""Shortest beginning that is kept, and least that a longer one must add: about 150 tokens, which take one
core of a small computer a second, while saving and restoring take some hundredths."""

_REMEMBERED = 32
_SEPARATOR = "\x1f"
_NAME = re.compile(r"[0-9a-f]{16}-(?P<length>\d+)-(?P<text>[0-9a-f]{32})-(?P<content>[0-9a-f]{32})\.kv")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """A saved state.

    Attributes:
        path: its file.
        length: characters of the beginning that it stands for.
        content: hash of the file.
    """

    path: Path
    length: int
    content: str

    @property
    def is_whole(self) -> bool:
        """Whether the file still is what was saved."""
        with suppress(OSError), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32] == self.content
        return False


class PrefixFiles:
    """The saved states of one model with one context; every method reads or writes the disk.

    Args:
        folder: of the states of all models; made private.
        identity: whatever makes a state useless when it changes: the model's file, the context, the engine.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._identity = _hash(identity)[:16]
        make_private_folders(folder)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)

    @property
    def part_name(self) -> str:
        """Name, without folder, of the file that the engine shall write; `keep` gives it its own."""
        return f"{self._identity}-{os.getpid()}.part"

    def find(self, text: str) -> SavedPrefix | None:
        """The state of the longest beginning of `text` that was saved."""
        found = []
        for path in self.folder.glob(f"{self._identity}-*.kv"):
            match = _NAME.fullmatch(path.name)
            length = int(match["length"]) if match else 0
            if match and 0 < length <= len(text) and _hash(text[:length]) == match["text"]:
                found.append(SavedPrefix(path, length, match["content"]))
        return max(found, key=lambda saved: saved.length, default=None)

    def used(self, saved: SavedPrefix) -> None:
        """Note that it was of use: the ones that were not go first."""
        with suppress(OSError):
            os.utime(saved.path)

    def forget(self, saved: SavedPrefix) -> None:
        """Delete one that is damaged or was refused."""
        saved.path.unlink(missing_ok=True)

    def keep(self, text: str) -> None:
        """Name what the engine wrote to `part_name` as the state after `text`, and make room for it."""
        part = self.folder / self.part_name
        part.chmod(0o600)
        with part.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        part.replace(self.folder / f"{self._identity}-{len(text)}-{_hash(text)}-{content}.kv")
        self._make_room()

    def _make_room(self) -> None:
        files = sorted(self.folder.glob("*.kv"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        taken = 0
        for number, path in enumerate(files):
            taken += path.stat().st_size
            if number >= MOST_FILES or (taken > MOST_BYTES and number):
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The fixed beginning of a prompt.

    Attributes:
        system: the system prompt.
        shared: how the first turn after it begins, as far as that is fixed.
        text: both, and the tools, as one text to be hashed.
    """

    system: str
    shared: str
    text: str

    def within(self, prompt: str) -> str | None:
        """The part of a rendered prompt that it covers; None if the template changed the words."""
        end = 0
        for words in (self.system.strip(), self.shared.strip()):
            at = prompt.find(words, end)
            if at < 0:
                return None
            if words:
                end = at + len(words)
        return prompt[:end]


class PrefixLearner:
    """Finds out where the fixed beginning of prompts ends: what two prompts under one system prompt share."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, str] = OrderedDict()
        self._kept: dict[str, int] = {}

    def beginning(self, request: LLMRequest) -> Beginning:
        """The beginning of this prompt, as far as it is known to come again; remembers the prompt."""
        system, user = _first_turns(request)
        key = self._key(request)
        last = self._last.pop(key, None)
        self._last[key] = user
        if len(self._last) > _REMEMBERED:
            self._kept.pop(self._last.popitem(last=False)[0], None)
        # The same text again is a conversation that goes on, or a question repeated: nothing is learnt.
        shared = 0 if last is None or last == user else _in_common(last, user)
        return Beginning(system, user[:shared], _flat(request, shared))

    def kept(self, request: LLMRequest) -> int | None:
        """Characters of the longest beginning that is saved for prompts like this, None if nobody looked."""
        return self._kept.get(self._key(request))

    def note(self, request: LLMRequest, length: int) -> None:
        """Remember that a beginning of so many characters is saved, or cannot be."""
        self._kept[self._key(request)] = length

    def _key(self, request: LLMRequest) -> str:
        return _hash(_flat(request, 0))


def _in_common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _first_turns(request: LLMRequest) -> tuple[str, str]:
    """The system prompt and the text of the first turn after it; each empty if there is none."""
    others = (message.content for message in request.messages if message.role != "system")
    return request.system_prompt or "", next(others, "")


def _flat(request: LLMRequest, shared: int | None = None) -> str:
    """What decides about the beginning of the rendered prompt, as one text: tools, system prompt, first turn.

    Only the first `shared` characters of the turn, all of them if None.
    """
    system, user = _first_turns(request)
    tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
    return _SEPARATOR.join((json.dumps(tools) if tools else "", system, user[:shared]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Slot(Protocol):
    """What the keeper needs of a running engine."""

    @property
    def pid(self) -> int | None:
        """Which process it is."""
        ...

    async def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST to the engine; raises an `LLMError`."""
        ...

    async def state(self, action: Literal["save", "restore"], file: str) -> None:
        """Write what it has read to a file of the folder, or take it from there; raises an `LLMError`."""
        ...

    async def sleeps(self) -> bool:
        """Whether it has unloaded its model, and with it what it had read."""
        ...


class PrefixKeeper:
    """Restores the beginning of a prompt into an engine that has forgotten it, and saves new ones.

    Args:
        idle_seconds: after so long without a call the engine may sleep.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle = idle_seconds
        self._learner = PrefixLearner()
        self._pid: int | None = None
        self._last_call = 0.0

    async def prepare(self, files: PrefixFiles, slot: Slot, request: LLMRequest) -> bool:
        """Bring the engine as far as is worth it before it gets the prompt. Never raises an `LLMError`.

        Returns:
            Whether the engine has read a part of this prompt just now, which is no hit of its own cache.
        """
        try:
            if await self._has_forgotten(slot):
                await self._restore(files, slot, request)
            if request.cache in {"on", "write"}:
                return await self._save(files, slot, request)
        except (LLMError, OSError) as error:  # the call itself will say what is wrong, if more is than this
            _log.debug("the beginning of a prompt could not be kept: %s", error)
        return False

    def finished(self) -> None:
        """Note the end of a call: from now on the engine is idle."""
        self._last_call = time.monotonic()

    async def _has_forgotten(self, slot: Slot) -> bool:
        if slot.pid != self._pid:
            self._pid = slot.pid
            return True
        return time.monotonic() - self._last_call >= self._idle - 1.0 and await slot.sleeps()

    async def _restore(self, files: PrefixFiles, slot: Slot, request: LLMRequest) -> None:
        saved = await asyncio.to_thread(files.find, _flat(request))
        self._learner.note(request, 0 if saved is None else saved.length)
        if saved is None:
            return
        if not await asyncio.to_thread(lambda: saved.is_whole):
            _log.warning("%s is damaged and was deleted; it is made again", saved.path)
            await self._drop(files, saved, request)
            return
        try:
            await slot.state("restore", saved.path.name)
        except LLMError:
            await self._drop(files, saved, request)
            raise
        await asyncio.to_thread(files.used, saved)

    async def _drop(self, files: PrefixFiles, saved: SavedPrefix, request: LLMRequest) -> None:
        self._learner.note(request, 0)
        await asyncio.to_thread(files.forget, saved)

    async def _save(self, files: PrefixFiles, slot: Slot, request: LLMRequest) -> bool:
        beginning = self._learner.beginning(request)
        kept = self._learner.kept(request)
        if kept is None and len(beginning.text) >= WORTH_CHARACTERS:
            saved = await asyncio.to_thread(files.find, beginning.text)
            kept = 0 if saved is None else saved.length
            self._learner.note(request, kept)
        if len(beginning.text) - (kept or 0) < WORTH_CHARACTERS:
            return False
        self._learner.note(request, len(beginning.text))  # whatever comes now, it is not tried at each call
        rendered = await slot.ask("/apply-template", chat_body(request, Takes()))
        head = beginning.within(str(rendered["prompt"]))
        if head is None:
            return False
        # Reads it, which the call would have to anyway, so that the state ends where the beginning does.
        await slot.ask("/completion", {"prompt": head, "n_predict": 0, "cache_prompt": True})
        await slot.state("save", files.part_name)
        await asyncio.to_thread(files.keep, beginning.text)
        return True
