"""FileWatch: an agent is due when a file that it watches has changed and come to rest.

What changed is found by comparing: each look notes time, size and inode of the watched files, so a missed or
doubled notification does no harm. watchfiles tells whether a look is worth while; where it is not installed,
or the system has no more watches to give, there is a look every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon.triggers.paths import absolute

_log = logging.getLogger(__name__)

TICK_S = 6.0
"""How often it is asked whether anything changed: watchfiles itself only sleeps and looks, more often."""

SETTLE_S = 2.0
"""A change counts when nothing further has changed for so long: a file that is being copied counts once."""

LONGEST_SETTLE_S = 30.0
"""What never comes to rest counts after this."""

LOOK_ANYWAY_S = 600.0
"""A network file system notifies nobody of what others change on it."""

LONGEST_BUSY_S = 3600.0
"""A run or change that began so long ago is taken for ended, if its end could not be recorded."""

CLOSE_LIMIT_S = 2.0
"""A look that is under way may take so long when the watching ends."""

MOST_FILES = 20_000
"""Of one agent's files no more are looked at."""

_LOOKS = 3
_SHARE = 20
"""A look may take this part of the time at most, however many files there are."""

_PASSING = ("~", ".tmp", ".part", ".crdownload", ".swp")
"""Ends of the names of files that are still being written, or are an editor's own."""

Stamp = tuple[int, int, int]
Snapshot = Mapping[str, Stamp]


@dataclass(slots=True)
class _Watched:
    """What one agent watches.

    Attributes:
        patterns: absolute paths and patterns.
        since: seconds of the epoch; a file that changed later makes it due at the start.
        known: the files as they were when the agent was last due, or when they last were its own changes.
        seen: the files at the last look.
        first: when the change that is coming to rest began, seconds of `time.monotonic`; None without one.
        latest: when the last look found a difference.
        busy: how many of its runs and changes are under way.
        busy_since: when that was last more, seconds of `time.monotonic`.
        own: whether what has changed by the next look is its own.
        told: whether it was said that there are too many files.
    """

    patterns: tuple[str, ...]
    since: float | None = None
    known: Snapshot = field(default_factory=dict)
    seen: Snapshot = field(default_factory=dict)
    first: float | None = None
    latest: float = 0.0
    busy: int = 0
    busy_since: float = 0.0
    own: bool = False
    told: bool = False

    def is_free(self, now: float) -> bool:
        """Whether none of its runs and changes is under way; one whose end nobody told of ends some time."""
        if self.busy and now - self.busy_since > LONGEST_BUSY_S:
            self.busy = 0
        return not self.busy

    def judge(self, fresh: Snapshot, now: float, settle: float, longest: float) -> bool:
        """Take in a look; tells whether the agent is due."""
        if self.own:
            self.own = False
            self.known = self.seen = fresh
            return False
        if fresh != self.seen:
            self.seen, self.latest = fresh, now
            self.first = now if self.first is None else self.first
        if self.first is None:
            return False
        if now - self.latest < settle and now - self.first < longest:
            return False
        changed = fresh != self.known
        self.known, self.first = fresh, None
        return changed


class FileWatch:
    """Watches files for agents, from `start` until `aclose`.

    Args:
        watched: by agent, files, folders (with all that is in them) and patterns such as "inbox/**/*.csv".
        base_dir: where relative ones start.
        fire: called on the event loop with the name of an agent that is due.
        since: by agent, a moment; what changed after it and before the start makes the agent due too.
        notify: whether to use watchfiles where it is installed.
        tick: seconds from one question to the next.
        settle: seconds that a change has to rest.
        longest: seconds after which one that does not rest counts.
    """

    def __init__(
        self,
        watched: Mapping[str, Sequence[str]],
        base_dir: Path,
        fire: Callable[[str], object],
        *,
        since: Mapping[str, datetime] | None = None,
        notify: bool = True,
        tick: float = TICK_S,
        settle: float = SETTLE_S,
        longest: float = LONGEST_SETTLE_S,
    ) -> None:
        moments = {name: moment.timestamp() for name, moment in (since or {}).items()}
        self._agents = {
            name: _Watched(tuple(absolute(each, base_dir) for each in patterns), moments.get(name))
            for name, patterns in watched.items()
        }
        self._fire = fire
        self._tick, self._settle, self._longest = tick, settle, longest
        self._wanted = notify
        self._notifier: _Notifier | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._failing = False
        self._look_took = 0.0
        self._looked_at = 0.0

    @property
    def notified(self) -> bool:
        """Whether the system tells of changes; otherwise the files are looked at now and then."""
        return self._notifier is not None

    async def start(self) -> None:
        """Note how the files are now, and begin."""
        if not self._agents:
            return
        for name in await asyncio.to_thread(self._begin):
            self._fire(name)
        self._task = asyncio.create_task(self._watch(), name="file watch")

    async def aclose(self) -> None:
        """End."""
        task, self._task = self._task, None
        self._closing = True
        self._wake.set()
        if task is not None:
            _, waiting = await asyncio.wait({task}, timeout=CLOSE_LIMIT_S)  # a look may hang on a lost disk
            for each in waiting:
                each.cancel()
        notifier, self._notifier = self._notifier, None
        if notifier is not None:
            await asyncio.to_thread(notifier.close)

    async def catch_up(self) -> None:
        """Fire what has changed by now, without waiting for it to rest."""
        free = {name: each for name, each in self._agents.items() if not each.busy and not each.own}
        with contextlib.suppress(TimeoutError):  # a lost disk does not hold up whoever wants to go on
            async with asyncio.timeout(CLOSE_LIMIT_S):
                fresh = await asyncio.to_thread(self._snapshots, free)
                for name, watched in free.items():
                    if fresh[name] != watched.known:
                        watched.known = watched.seen = fresh[name]
                        self._fire(name)

    def suppress(self, agent: str) -> None:
        """What changes until `resume` is the agent's own; a change that is still coming to rest is not."""
        watched = self._agents.get(agent)
        if watched is not None:
            watched.busy += 1
            watched.busy_since = time.monotonic()

    def resume(self, agent: str) -> None:
        """End what `suppress` began."""
        watched = self._agents.get(agent)
        if watched is not None and watched.busy:
            watched.busy -= 1
            if watched.busy == 0 and watched.first is None:
                watched.own = True
                self._wake.set()  # what others change from now on is not its own

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # not wait_for, which may swallow a cancellation
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            if self._closing:
                return
            self._wake.clear()
            try:
                if self._worth_while():
                    await self._look()
                self._failing = False
            except Exception:  # noqa: BLE001 - whatever a file system does, the watching goes on
                if not self._failing:
                    _log.exception("watched files cannot be looked at; trying on")
                self._failing = True

    def _pause(self) -> float:
        if any(each.first is not None for each in self._agents.values()):
            return min(self._settle / 2, self._tick)
        return self._tick if self.notified else max(self._tick, _SHARE * self._look_took)

    def _worth_while(self) -> bool:
        """Whether anything may have changed. Takes a few milliseconds at most."""
        if self._notifier is None or time.monotonic() - self._looked_at > LOOK_ANYWAY_S:
            return True
        try:
            hinted = self._notifier.hinted()
        except (OSError, RuntimeError) as error:
            self._fall_back(error)
            return True
        return hinted or any(each.own or each.first is not None for each in self._agents.values())

    async def _look(self) -> None:
        free = {name: each for name, each in self._agents.items() if each.is_free(time.monotonic())}
        own = {name for name, each in free.items() if each.own}
        fresh = await asyncio.to_thread(self._snapshots, free)
        now = time.monotonic()
        for name, watched in free.items():
            if watched.busy or (watched.own and name not in own):
                continue  # it began meanwhile: how much of its changes the look has seen cannot be told
            if watched.judge(fresh[name], now, self._settle, self._longest):
                self._fire(name)

    def _begin(self) -> list[str]:
        """Note how the files are; returns the agents with files that changed since a moment of before."""
        self._renew()
        for name, snapshot in self._snapshots(self._agents).items():
            self._agents[name].known = self._agents[name].seen = snapshot
        return [
            name
            for name, each in self._agents.items()
            if each.since is not None and _changed_since(each.patterns, each.since)
        ]

    def _snapshots(self, agents: Mapping[str, _Watched]) -> dict[str, Snapshot]:
        """How the files are. Runs in a thread."""
        began = time.monotonic()
        if self._notifier is not None and self._notifier.roots != self._roots():
            self._renew()  # before the look, so that nothing that comes after it goes unnoticed
        found = {name: self._snapshot(name, watched) for name, watched in agents.items()}
        self._looked_at = time.monotonic()
        self._look_took = self._looked_at - began
        return found

    def _snapshot(self, name: str, watched: _Watched) -> Snapshot:
        found: dict[str, Stamp] = {}
        for path, state in _files_of(watched.patterns):
            found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
            if len(found) >= MOST_FILES:
                if not watched.told:
                    _log.warning(
                        "an agent watches too many files: changes of the first %d are seen; narrow `watch`",
                        MOST_FILES,
                        extra={"agent": name},
                    )
                watched.told = True
                break
        return found

    def _roots(self) -> frozenset[tuple[str, bool]]:
        return frozenset(
            root for each in self._agents.values() for pattern in each.patterns for root in _roots_of(pattern)
        )

    def _renew(self) -> None:
        """Be told about what is there now. Runs in a thread."""
        notifier, self._notifier = self._notifier, None
        if notifier is not None:
            notifier.close()
        if not self._wanted:
            return
        try:
            self._notifier = _Notifier(self._roots())
        except ImportError:
            self._wanted = False
            _log.info(
                "watched files are looked at every %g s; pip install 'askfirst[agents]' spares that",
                self._tick,
            )
        except (OSError, RuntimeError) as error:
            self._fall_back(error)

    def _fall_back(self, error: Exception) -> None:
        notifier, self._notifier, self._wanted = self._notifier, None, False
        if notifier is not None:
            notifier.close()
        _log.warning(
            "the system does not tell of changed files, so they are looked at every %g s: %s; on Linux a "
            "larger fs.inotify.max_user_watches or max_user_instances (sysctl) helps, and a restart",
            self._tick,
            error,
        )


class _Notifier:
    """Collects the system's notifications; there is no event to wait for, so it has to be asked.

    Attributes:
        roots: the folders it tells about, each with whether all below is meant too.
    """

    def __init__(self, roots: frozenset[tuple[str, bool]]) -> None:
        from watchfiles._rust_notify import RustNotify  # noqa: PLC0415 - an extra; its other parts poll

        self.roots = roots
        self._parts: list[Any] = []
        for recursive in (True, False):
            paths = [path for path, deep in sorted(roots) if deep is recursive]
            if paths:
                # No debug output, no polling of its own; what may not be read is left out.
                self._parts.append(RustNotify(paths, False, False, 300, recursive, True))  # noqa: FBT003 - as declared

    def hinted(self) -> bool:
        """Whether there were notifications since the last question."""
        answers = [self._asked(part) for part in self._parts]  # each of them, as it forgets what it told
        return any(answers)

    @staticmethod
    def _asked(part: Any) -> bool:
        try:
            return isinstance(part.watch(0, 0, 1, _Impatience()), set)
        except TimeoutError:
            return False

    def close(self) -> None:
        for part in self._parts:
            part.close()


class _Impatience:
    """Ends a question that was not answered: watchfiles looks again and again until its time is over."""

    def __init__(self) -> None:
        self._looks = 0

    def is_set(self) -> bool:
        """Asked before each look; two in a row with the same changes are an answer."""
        self._looks += 1
        if self._looks > _LOOKS:
            raise TimeoutError
        return False


def _changed_since(patterns: Sequence[str], moment: float) -> bool:
    """Whether a watched file changed, or came to its place, after a moment."""
    files = itertools.islice(_files_of(patterns), MOST_FILES)
    return any(max(state.st_mtime, state.st_ctime) > moment for _, state in files)


def _files_of(patterns: Sequence[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every watched file with its state."""
    for pattern in patterns:
        if not glob.has_magic(pattern) or _state(pattern) is not None:
            yield from _named(pattern)
            continue
        for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - Path.glob takes no absolute pattern
            state = _state(path)
            if state is not None and not stat.S_ISDIR(state.st_mode) and not _is_passing(path):
                yield path, state


def _named(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """A file that is named, or all that is in a folder that is."""
    state = _state(path)
    if state is None:
        return
    if stat.S_ISDIR(state.st_mode):
        yield from _inside(path)
        return
    yield path, state
    journal = _state(f"{path}-wal")  # where SQLite keeps what was committed last
    if journal is not None and journal.st_size:
        yield f"{path}-wal", journal


def _inside(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            path = os.path.join(here, name)  # noqa: PTH118 - thousands of them at each look
            state = None if name.startswith(".") or _is_passing(name) else _state(path)
            if state is not None:
                yield path, state


def _state(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - as above
    except (OSError, ValueError):  # gone meanwhile, not ours to see, or no path at all
        return None


def _is_passing(name: str) -> bool:
    return name.endswith(_PASSING)


def _roots_of(pattern: str) -> Iterator[tuple[str, bool]]:
    """The existing folders whose notifications tell of the watched files, and whether all below is meant."""
    path = Path(pattern)
    if "\0" in pattern:  # no file can have such a name
        return
    if glob.has_magic(pattern) and _state(pattern) is None:
        plain = Path(*_plain_parts(path.parts))
        deep = len(path.parts) - len(plain.parts) > 1
        yield _nearest(plain), deep and _is_folder(plain)
        return
    if _is_folder(path):
        yield pattern, True
    yield _nearest(path.parent), False  # a file that is saved is mostly a new one in its place
    yield _nearest(Path(os.path.realpath(pattern)).parent), False


def _plain_parts(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _nearest(path: Path) -> str:
    """The path, or the nearest folder above it that exists."""
    return str(next(filter(_is_folder, (path, *path.parents))))


def _is_folder(path: Path) -> bool:
    state = _state(str(path))
    return state is not None and stat.S_ISDIR(state.st_mode)
