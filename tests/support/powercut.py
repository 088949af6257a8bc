"""What a disk may hold after its power was cut, at every moment of a program's life; needs strace, no root.

`record` lets a program run under strace and notes what it asked of the files in one folder. `states` then
plays that back and at each step makes folders as a cut could leave them:

- what a file held when it was last synced is there; later writes are there or not, in any selection, each in
  pieces of 512 bytes that are there or not;
- names (made, renamed, deleted) reach the disk in order; syncing a folder, or a file that was made, brings
  all up to then with it, as the journals of ext4, XFS and btrfs do;
- shared memory (`-shm`) is never there: SQLite makes it anew.

After SQLite's own crash tests (test6.c) and the ALICE paper.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR = 512
CALLS = (
    "openat,close,dup,dup2,dup3,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,mmap,"
    "copy_file_range,sendfile,fsync,fdatasync,?rename,?renameat,renameat2,?unlink,unlinkat"
)
NOT_REPLAYED = ("fallocate", "copy_file_range", "sendfile", "dup", "dup2", "dup3")


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written at a place, or with `data` None a new length."""

    file: int
    at: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Name:
    """A name that means that file from now on, or nothing any more; `old` is the name that it had before."""

    name: str
    file: int | None
    old: str = ""
    made: bool = False


@dataclass(frozen=True, slots=True)
class Sync:
    """A file, or with None a folder, is on the disk as it was when step number `since` had been taken."""

    file: int | None
    since: int


@dataclass(frozen=True, slots=True)
class Said:
    """The program said something."""

    words: tuple[Any, ...]


Step = Write | Name | Sync | Said


@dataclass
class Recording:
    """What was in the folder before, and what was done to it since."""

    before: dict[str, bytes]
    steps: list[Step]


def record(command: Sequence[str], folder: Path, trace: Path, **options: Any) -> Recording:
    """Run a program that works in `folder` and writes its words, JSON lists, to standard output."""
    before = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    strace = ["strace", "-f", "-qq", "-xx", "-s", "10000000", "-o", str(trace), "-e", f"trace={CALLS}"]
    done = subprocess.run([*strace, *command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    scribe = _Scribe(str(folder), before)
    with trace.open(encoding="ascii", errors="replace") as lines:
        for text in lines:
            scribe.read(text)
    return Recording(before, scribe.steps)


@dataclass(slots=True)
class _Open:
    """An open file: which one, where in it, and whether it writes at its end."""

    file: int | None
    at: int = 0
    append: bool = False


_LINE = re.compile(r"(?P<thread>\d+)\s+(?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>\s?")
_CALL = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+|0x[0-9a-f]+|\?)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED = "<unfinished ...>"


class _Scribe:
    """Reads strace's lines and writes steps. Calls count when they end, closing a file when it begins."""

    def __init__(self, folder: str, before: Mapping[str, bytes]) -> None:
        self.steps: list[Step] = []
        self._folder = folder
        self._names = {name: number for number, name in enumerate(before)}
        self._lengths = {number: len(data) for number, data in enumerate(before.values())}
        self._open: dict[int, _Open] = {}
        self._begun: dict[str, tuple[str, int]] = {}

    def read(self, text: str) -> None:
        """One line."""
        if not (found := _LINE.match(text)):
            return
        thread, rest, since = found["thread"], found["rest"], len(self.steps)
        if rest.startswith("close("):
            self._open.pop(int(re.match(r"close\((\d+)", rest)[1]), None)  # type: ignore[index]
            return
        if rest.endswith(_UNFINISHED):
            self._begun[thread] = (rest.removesuffix(_UNFINISHED).rstrip(), since)
            return
        if resumed := _RESUMED.match(rest):
            if thread not in self._begun:  # of a close
                return
            beginning, since = self._begun.pop(thread)
            rest = beginning + rest[resumed.end() :]
        if (call := _CALL.match(rest)) and call["result"] != "?" and not call["result"].startswith("-"):
            self._take(call["call"], call["arguments"], int(call["result"], 0), since)

    def _take(self, call: str, arguments: str, result: int, since: int) -> None:
        match call:
            case "openat":
                self._opened(arguments, result)
            case "rename" | "renameat" | "renameat2":
                self._renamed(*_texts(arguments)[:2])
            case "unlink" | "unlinkat":
                self._unlinked(_texts(arguments)[0])
            case "mmap":
                self._mapped(arguments)
            case _:
                self._on_open(call, arguments, result, since)

    def _on_open(self, call: str, arguments: str, result: int, since: int) -> None:
        descriptor = int(re.match(r"\d+", arguments)[0])  # type: ignore[index]
        if call == "write" and descriptor == 1:
            self.steps += [Said(tuple(json.loads(each))) for each in _texts(arguments)[0].splitlines()]
            return
        if (file := self._open.get(descriptor)) is None:
            return
        assert call not in NOT_REPLAYED, f"{call} is not replayed: {arguments[:80]}"
        match call:
            case "lseek":
                file.at = result
            case "ftruncate":
                self._write(file, int(arguments.rpartition(", ")[2]), None)
            case "fsync" | "fdatasync":
                self.steps.append(Sync(file.file, since))
            case "write" | "writev":
                start = self._lengths[file.file] if file.append and file.file is not None else file.at
                self._write(file, start, _data(arguments)[:result])
                file.at = start + result
            case "pwrite64" | "pwritev" | "pwritev2":
                place = int(arguments.split(", ")[-1 if call != "pwritev2" else -2])
                self._write(file, place, _data(arguments)[:result])

    def _write(self, file: _Open, at: int, data: bytes | None) -> None:
        assert file.file is not None
        self._lengths[file.file] = at if data is None else max(self._lengths[file.file], at + len(data))
        self.steps.append(Write(file.file, at, data))

    def _opened(self, arguments: str, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        path = _texts(arguments)[0]
        if path != self._folder and not path.startswith(f"{self._folder}/"):
            return
        flags = arguments.rpartition('"')[2]
        name = path.removeprefix(f"{self._folder}/")
        if "O_DIRECTORY" in flags or (name not in self._names and "O_CREAT" not in flags):
            self._open[descriptor] = _Open(None)  # a folder: SQLite opens it without saying so
            return
        if name not in self._names:
            self._names[name] = len(self._lengths)
            self._lengths[self._names[name]] = 0
            self.steps.append(Name(name, self._names[name], made=True))
        file = self._open[descriptor] = _Open(self._names[name], append="O_APPEND" in flags)
        if "O_TRUNC" in flags and self._lengths[self._names[name]]:
            self._write(file, 0, None)

    def _renamed(self, old: str, new: str) -> None:
        if old.startswith(f"{self._folder}/"):
            old, new = (each.removeprefix(f"{self._folder}/") for each in (old, new))
            self._names[new] = self._names.pop(old)
            self.steps.append(Name(new, self._names[new], old))

    def _unlinked(self, path: str) -> None:
        name = path.removeprefix(f"{self._folder}/")
        if self._names.pop(name, None) is not None:
            self.steps.append(Name(name, None))

    def _mapped(self, arguments: str) -> None:
        _, _, protection, flags, descriptor, _ = arguments.split(", ")
        file = self._open.get(int(descriptor))
        if file is not None and "PROT_WRITE" in protection and "MAP_SHARED" in flags:
            names = [name for name, number in self._names.items() if number == file.file]
            assert all(name.endswith("-shm") for name in names), f"written through memory: {names}"


def _texts(arguments: str) -> list[str]:
    return [_bytes(text).decode() for text in _TEXT.findall(arguments)]


def _data(arguments: str) -> bytes:
    return b"".join(_bytes(text) for text in _TEXT.findall(arguments))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class _Disk:
    """What has reached the disk for sure, and what may have."""

    names: dict[str, int]
    files: dict[int, bytearray]
    pending_names: list[tuple[int, Name]] = field(default_factory=list)
    pending: dict[int, list[tuple[int, Write]]] = field(default_factory=dict)

    def take(self, number: int, step: Step) -> None:
        """Step `number` of the recording."""
        match step:
            case Name():
                self.pending_names.append((number, step))
            case Write():
                self.pending.setdefault(step.file, []).append((number, step))
            case Sync(file=None):
                self._names_reach(step.since)
            case Sync():
                self._sync(int(step.file or 0), step.since)

    def _sync(self, file: int, since: int) -> None:
        waiting = self.pending.pop(file, [])
        for _, write in (each for each in waiting if each[0] < since):
            _change(self.files.setdefault(file, bytearray()), write)
        self.pending[file] = [each for each in waiting if each[0] >= since]
        made = [n for n, name in self.pending_names if n < since and name.made and name.file == file]
        if made:
            self._names_reach(made[-1] + 1)

    def _names_reach(self, before: int) -> None:
        for _, name in (each for each in self.pending_names if each[0] < before):
            _rename(self.names, name)
        self.pending_names = [each for each in self.pending_names if each[0] >= before]

    def cut(self, mode: str, chance: random.Random) -> dict[str, bytes]:
        """The files after a cut: with "nothing" or "everything" that may be there, or "some" of it."""
        most = len(self.pending_names)
        reached = {"nothing": 0, "everything": most}.get(mode, chance.randint(0, most))
        names = dict(self.names)
        for _, name in self.pending_names[:reached]:
            _rename(names, name)
        return {name: bytes(self._file(file, mode, chance)) for name, file in names.items() if _on_disk(name)}

    def _file(self, file: int, mode: str, chance: random.Random) -> bytearray:
        data = bytearray(self.files.get(file, b""))
        for _, write in self.pending.get(file, ()) if mode != "nothing" else ():
            for part in (write,) if mode == "everything" else _some_of(write, chance):
                _change(data, part)
        return data


def _on_disk(name: str) -> bool:
    return not name.endswith("-shm")


def _change(data: bytearray, write: Write) -> None:
    length = write.at if write.data is None else write.at + len(write.data)
    if len(data) < length:
        data.extend(bytes(length - len(data)))
    if write.data is None:
        del data[write.at :]
    else:
        data[write.at : length] = write.data


def _rename(names: dict[str, int], name: Name) -> None:
    names.pop(name.old, None)
    if name.file is None:
        names.pop(name.name, None)
    else:
        names[name.name] = name.file


def _some_of(write: Write, chance: random.Random) -> Iterator[Write]:
    dice = chance.random()
    if dice < 0.35:
        return
    if dice < 0.7 or write.data is None:
        yield write
        return
    for start in range(0, len(write.data), SECTOR):
        if chance.random() < 0.5:
            yield Write(write.file, write.at + start, write.data[start : start + SECTOR])


@dataclass(frozen=True, slots=True)
class State:
    """What is on the disk after a cut behind step `step`, when the program had said `said`."""

    step: int
    files: dict[str, bytes]
    said: int

    def write(self, folder: Path) -> None:
        """Make `folder` hold exactly this."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True, mode=0o700)
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(data)
            path.chmod(0o600)


def states(recording: Recording, count: int, seed: int) -> Iterator[State]:
    """At least so many different states: behind each step what is there for sure, then others by chance."""
    chance, seen = random.Random(seed), set[bytes]()
    modes: tuple[str, ...] = ("nothing", "some")
    while len(seen) < count:
        before = len(seen)
        for state in _once(recording, modes, chance):
            digest = _digest(state)
            if digest not in seen and (len(seen) < count or "nothing" in modes):
                seen.add(digest)
                yield state
        assert len(seen) > before, f"there are only {before} different states"
        modes = ("some",)


def kills(recording: Recording) -> Iterator[State]:
    """What is there after a kill -9 behind each step: the system keeps all that was written."""
    return _once(recording, ("everything",), random.Random(0))


def _once(recording: Recording, modes: Sequence[str], chance: random.Random) -> Iterator[State]:
    names = {name: number for number, name in enumerate(recording.before)}
    disk = _Disk(names, {names[name]: bytearray(data) for name, data in recording.before.items()})
    said = 0
    for number, step in enumerate(recording.steps):
        disk.take(number, step)
        said += isinstance(step, Said)
        for mode in modes:
            yield State(number, disk.cut(mode, chance), said)


def _digest(state: State) -> bytes:
    digest = hashlib.blake2b(str(state.said).encode())
    for name, data in sorted(state.files.items()):
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return digest.digest()
