"""kill -9 at any moment: what was acknowledged is there, nothing happened twice, nothing is half done."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agents.proposal import ProposalStatus
from daemon.events import RunOutcome
from daemon.runtime import Runtime, open_runtime
from tests.support.crashes import Busy, Story
from tests.support.stores import ROOT, settings_for

KILLS = 50


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    """What a program told that was killed again and again while it ran, approved, rejected and undid."""
    folder = tmp_path_factory.mktemp("crash")
    command = [sys.executable, "-m", "tests.support.crashes", str(folder), str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return folder, Story(**told)


async def reopened(stack: AsyncExitStack, folder: Path) -> Runtime:
    runtime = await stack.enter_async_context(
        open_runtime(await settings_for(folder), agents=[Busy], with_llm=False)
    )
    await runtime.desk.recover()
    return runtime


async def test_the_program_was_killed_in_the_middle_of_its_work(story: tuple[Path, Story]) -> None:
    _, told = story
    assert told.killed == KILLS
    assert len(told.runs) > KILLS / 2
    assert min(len(told.applied), len(told.undone), len(told.rejected)) > 5
    assert told.recovered > 0  # some were killed between the two commits of an apply or an undo


async def test_no_acknowledged_run_or_decision_is_lost(story: tuple[Path, Story]) -> None:
    folder, told = story
    async with AsyncExitStack() as stack:
        runtime = await reopened(stack, folder)
        runs = {run.run_id: run for run in await runtime.runs.list(limit=None)}
        stands = {p.id: p.status for p in await runtime.proposals.list(limit=None)}
    for run_id, numbers in told.runs.items():
        assert {p.id for p in runs[run_id].proposals} == set(numbers)
    undone = set(told.undone)
    may_be_undone = {ProposalStatus.APPLIED, ProposalStatus.UNDONE}
    assert all(stands[number] in may_be_undone for number in set(told.applied) - undone)
    assert {stands[number] for number in undone} == {ProposalStatus.UNDONE}
    assert {stands[number] for number in told.rejected} == {ProposalStatus.REJECTED}


async def test_what_is_applied_happened_exactly_once_and_what_is_not_did_not_happen(
    story: tuple[Path, Story],
) -> None:
    folder, _ = story
    async with AsyncExitStack() as stack:
        runtime = await reopened(stack, folder)
        kept = await runtime.proposals.list(limit=None)
    lines = (folder / "data" / "agents" / "busy" / "ledger.txt").read_text().splitlines()
    written = sorted(int(line.split()[0]) for line in lines)
    assert written == sorted(p.id or 0 for p in kept if p.status is ProposalStatus.APPLIED)
    assert not {p.status for p in kept} & {ProposalStatus.APPLYING, ProposalStatus.UNDOING}


async def test_no_run_is_half_there(story: tuple[Path, Story]) -> None:
    folder, _ = story
    async with AsyncExitStack() as stack:
        runtime = await reopened(stack, folder)
        for run in await runtime.runs.list(limit=None):
            whole = run.outcome is not RunOutcome.INTERRUPTED  # of one that was killed nothing was kept
            assert len(run.proposals) == Busy.each * whole
            assert len(await runtime.runs.calls_of(run.run_id)) == whole
        assert len({p.fingerprint for p in await runtime.proposals.list(limit=None)}) == len(
            await runtime.proposals.list(limit=None)
        )
