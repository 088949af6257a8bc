"""Killed at any moment, a match has happened wholly or not at all, and applied again it is exactly one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.builtin.matchmaker.journal import JOURNAL, Change, commit, locked, recover
from agents.errors import AgentError, SourceError
from agents.proposal import Proposal
from tests.support.matchmaker_data import contents, kept, matchmaker, pairs_of, proposals_of, simple_folder

NAMES = ("offers.csv", "needs.csv", "matches.csv")
ROOT = Path(__file__).parents[2]


async def before_and_after(tmp_path: Path) -> tuple[Path, Proposal, dict[str, bytes], dict[str, bytes]]:
    """A folder as it was, a proposal, and what the folder holds before and after it is applied."""
    folder = simple_folder(tmp_path / "community", ["O1,jamón,10,kg"], ["N1,ham,4,kg", "N2,jamón,3,kg"])
    before = contents(folder)
    (proposal, _) = kept(await proposals_of(folder))
    await matchmaker(folder).apply(proposal)
    after = contents(folder)
    restore(folder, before)
    return folder, proposal, before, after


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def journal_of(before: dict[str, bytes], after: dict[str, bytes]) -> bytes:
    """The journal that leads from one state to the other."""

    def digest(data: bytes | None) -> str | None:
        return None if data is None else hashlib.sha256(data).hexdigest()

    files = {
        name: {
            "old": digest(before.get(name)),
            "new": digest(after.get(name)),
            "content": after[name].decode("utf-8") if name in after else None,
        }
        for name in NAMES
    }
    return json.dumps({"version": 1, "files": files}, ensure_ascii=False).encode("utf-8")


def interrupted(folder: Path, before: dict[str, bytes], after: dict[str, bytes], replaced: int) -> None:
    """The folder as a crash leaves it with the journal in place and so many files replaced."""
    done = {name: after[name] for name in NAMES[:replaced] if name in after}
    gone = [name for name in NAMES[:replaced] if name not in after]
    restore(
        folder, {**before, **done, JOURNAL: journal_of(before, after), ".needs.csv.askfirst-new": b"half wr"}
    )
    for name in gone:
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("replaced", range(4))
@pytest.mark.parametrize("opened_by", ["analyze", "apply", "recheck", "undo"])
async def test_whoever_opens_the_folder_next_finishes_what_was_decided(
    tmp_path: Path, replaced: int, opened_by: str
) -> None:
    folder, proposal, before, after = await before_and_after(tmp_path)
    data = await matchmaker(folder).apply(proposal)
    interrupted(folder, before, after, replaced)
    agent = matchmaker(folder)
    match opened_by:
        case "analyze":
            assert pairs_of(await agent.analyze()) == {("O1", "N2")}
        case "apply":
            assert await agent.apply(proposal) == data
        case "recheck":
            assert await agent.recheck(proposal) is None, "it is written: nothing to withdraw"
        case "undo":
            await agent.undo(proposal.with_changes(undo_data=data))
    assert contents(folder) == (before if opened_by == "undo" else after)


@pytest.mark.parametrize("replaced", range(4))
async def test_an_interrupted_undo_is_finished_too(tmp_path: Path, replaced: int) -> None:
    folder, proposal, before, after = await before_and_after(tmp_path)
    data = await matchmaker(folder).apply(proposal)
    interrupted(folder, after, before, replaced)
    await matchmaker(folder).undo(proposal.with_changes(undo_data=data))
    assert contents(folder) == before


async def test_what_was_written_before_the_commit_point_is_thrown_away(tmp_path: Path) -> None:
    folder, _, before, _ = await before_and_after(tmp_path)
    for name in (*NAMES, JOURNAL):
        (folder / f".{name}.askfirst-new").write_bytes(b"half wr")
    await matchmaker(folder).analyze()
    assert contents(folder) == before


@pytest.mark.parametrize("name", NAMES[:2])
async def test_a_file_changed_by_somebody_in_between_stops_the_recovery_before_it_touches_anything(
    tmp_path: Path, name: str
) -> None:
    folder, proposal, before, after = await before_and_after(tmp_path)
    interrupted(folder, before, after, 1)
    (folder / name).write_bytes(before[name] + b"X9,something new,1,kg\n")
    held = contents(folder)
    with pytest.raises(
        SourceError, match=r"it was changed while a match was only half written.*Delete that file"
    ):
        await matchmaker(folder).apply(proposal)
    assert contents(folder) == held
    (folder / JOURNAL).unlink()  # the way out that the message names
    assert pairs_of(await matchmaker(folder).analyze())


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b'{"files": 3}',
        b"\xff",
        b'{"files": {"offers.csv": {"old": "x", "new": "y", "content": "z"}}}',
    ],
)
async def test_a_damaged_journal_is_never_followed(tmp_path: Path, damaged: bytes) -> None:
    folder, _, before, _ = await before_and_after(tmp_path)
    (folder / JOURNAL).write_bytes(damaged)
    with pytest.raises(SourceError, match="it was altered since"):
        await matchmaker(folder).analyze()
    assert contents(folder) == {**before, JOURNAL: damaged}


def test_a_change_of_several_files_can_make_and_remove_files(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("a", encoding="utf-8")
    with locked(tmp_path, ["old.csv", "new.csv"]):
        commit(
            tmp_path,
            [Change(name="old.csv", old="a", new=None), Change(name="new.csv", old=None, new="é\r\n")],
        )
        assert not recover(tmp_path, ["old.csv", "new.csv"])
    assert contents(tmp_path) == {"new.csv": "é\r\n".encode()}


def test_what_is_decided_and_cannot_be_finished_says_so_and_is_finished_later(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one", encoding="utf-8")
    (tmp_path / "b.csv").mkdir()  # in the way of a file
    changes = [Change(name="a.csv", old="one", new="two"), Change(name="b.csv", old=None, new="three")]
    with pytest.raises(AgentError, match="the change is decided and kept in"), locked(tmp_path, []):
        commit(tmp_path, changes)
    with (
        pytest.raises(SourceError, match=r"an interrupted change .* cannot be finished"),
        locked(tmp_path, []),
    ):
        pytest.fail("the folder was used half changed")
    (tmp_path / "b.csv").rmdir()
    with locked(tmp_path, []):
        assert contents(tmp_path) == {"a.csv": b"two", "b.csv": b"three"}


APPLY = """
import asyncio, sys
from pathlib import Path
from tests.support.matchmaker_data import kept, matchmaker, proposals_of

async def main(folder):
    (first, _) = kept(await proposals_of(folder))
    if sys.argv[2] == "undo":
        data = await matchmaker(folder).apply(first)
        await matchmaker(folder).undo(first.with_changes(undo_data=data))
    else:
        await matchmaker(folder).apply(first)

asyncio.run(main(Path(sys.argv[1])))
"""
STRACE = shutil.which("strace")


def can_trace() -> bool:
    """Whether programs may be traced here; some containers forbid it."""
    if STRACE is None:
        return False
    command = [STRACE, "-o", os.devnull, "-e", "inject=?getpid:delay_enter=1", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def killed(folder: Path, calls: str, number: int, what: str) -> bool:
    """Run the program and kill it when it enters such a system call for the `number`th time."""
    names = ",".join(f"?{call}" for call in calls.split())
    command = [STRACE or "", "-f", "-qq", "-o", os.devnull, "-e", f"trace={names}"]
    command += [
        "-e",
        f"inject={names}:signal=KILL:when={number}",
        sys.executable,
        "-B",
        "-c",
        APPLY,
        str(folder),
        what,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode in {0, -9, 137}, done.stderr.decode()
    return done.returncode != 0


@pytest.mark.process
@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")
@pytest.mark.parametrize(
    ("calls", "most"),
    [("rename renameat renameat2", 6), ("fsync", 14), ("unlink unlinkat", 3)],
    ids=["rename", "fsync", "unlink"],
)
async def test_killed_at_any_step_and_applied_again_there_is_exactly_one_match(
    tmp_path: Path, calls: str, most: int
) -> None:
    folder, proposal, before, after = await before_and_after(tmp_path)
    data = await matchmaker(folder).apply(proposal)
    number = 1
    restore(folder, before)
    while await asyncio.to_thread(killed, folder, calls, number, "apply"):
        assert number <= most, "the program seems to do this for ever"
        assert await matchmaker(folder).apply(proposal) == data
        assert contents(folder) == after
        await matchmaker(folder).undo(proposal.with_changes(undo_data=data))
        assert contents(folder) == before
        number += 1
    assert number > 1, "the program was never killed"


@pytest.mark.process
@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")
async def test_killed_at_any_rename_of_an_undo_and_undone_again_everything_is_as_it_was(
    tmp_path: Path,
) -> None:
    folder, proposal, before, after = await before_and_after(tmp_path)
    data = await matchmaker(folder).apply(proposal)
    undoing = proposal.with_changes(undo_data=data)
    restore(folder, before)
    number = 5  # the first four belong to the apply before
    while await asyncio.to_thread(killed, folder, "rename renameat renameat2", number, "undo"):
        assert number <= 12, "the program seems to do this for ever"
        await matchmaker(folder).undo(undoing)
        assert contents(folder) == before
        number += 1
    assert number > 6, "the undo was never interrupted"
    assert contents(folder) == before
    assert before != after
