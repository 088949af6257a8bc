# ruff: noqa: S101, D102 - the contract suite is made of tests: assertions, and names that are sentences
"""For tests of agents.

`run_agent` runs an agent once, without a daemon and without a store. `AgentContract` is what every agent
must do; one of your own runs it by subclassing (pytest with pytest-asyncio in auto mode):

    from agents.testing import AgentContract

    class TestPantry(AgentContract):
        agent_cls = PantryAgent

        def prepare(self, folder: Path) -> None:
            shutil.copy("tests/pantry.csv", folder)

        def settings(self, folder: Path) -> dict[str, Any]:
            return {"file": "pantry.csv"}
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.context import AgentContext, ModelCall, utc_now
from agents.prompts import templates_of
from agents.proposal import Proposal, ProposalStatus, canonical_json
from llm import LLMClient, LLMConfig, LLMError, LLMRequest, ServerError, get_llm_client

NOON = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
"""The time at which the suite runs agents unless told otherwise: a Wednesday."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """What came out of one run.

    Attributes:
        proposals: what the agent proposed.
        calls: the model calls it made.
        notes: what it said about the run.
    """

    proposals: tuple[Proposal, ...]
    calls: tuple[ModelCall, ...]
    notes: tuple[str, ...]


def make_agent(
    agent_cls: type[BaseAgent],
    *,
    llm: LLMClient | None = None,
    settings: Mapping[str, Any] | None = None,
    now: datetime | Callable[[], datetime] | None = None,
    open_proposals: Sequence[Proposal] = (),
    turned_down: Sequence[Proposal] = (),
    base_dir: Path | None = None,
    data_dir: Path | None = None,
    prompts_dir: Path | None = None,
) -> BaseAgent:
    """An agent as the daemon would make it; the arguments are those of `run_agent`.

    Raises:
        AgentSettingsError: the settings cannot work.
    """
    config = AgentConfig.from_table(agent_cls.name, settings or {}, agent_cls)
    clock = now if callable(now) else utc_now if now is None else lambda: now
    context = AgentContext(
        llm=llm,
        templates=templates_of(agent_cls, prompts_dir),
        settings=config.settings,
        base_dir=Path.cwd() if base_dir is None else base_dir,
        data_dir=data_dir,
        now=clock,
        open_proposals=tuple(open_proposals),
        turned_down={proposal.fingerprint: proposal.evidence_hash for proposal in turned_down},
        run_id="test",
    )
    return agent_cls(context)


async def run_agent(
    agent_cls: type[BaseAgent],
    *,
    llm: LLMClient | None = None,
    settings: Mapping[str, Any] | None = None,
    now: datetime | Callable[[], datetime] | None = None,
    open_proposals: Sequence[Proposal] = (),
    turned_down: Sequence[Proposal] = (),
    base_dir: Path | None = None,
    data_dir: Path | None = None,
    prompts_dir: Path | None = None,
) -> AgentRun:
    """Run an agent once.

    Args:
        agent_cls: the agent.
        llm: the model, such as `llm.testing.ScriptedBackend`; None for rules only.
        settings: its table of the configuration.
        now: the time, or a clock; None for the time of day.
        open_proposals: its proposals that still wait.
        turned_down: those that a person rejected or undid.
        base_dir: where relative paths of its settings start; the current folder if None.
        data_dir: the folder for what it must remember; the agent makes it when it needs it.
        prompts_dir: the owner's folder of prompt templates, as `prompts` beside the configuration is.

    Raises:
        AgentError: whatever `analyze` raises, or settings that cannot work.
        LLMError: whatever `analyze` raises.
    """
    agent = make_agent(
        agent_cls,
        llm=llm,
        settings=settings,
        now=now,
        open_proposals=open_proposals,
        turned_down=turned_down,
        base_dir=base_dir,
        data_dir=data_dir,
        prompts_dir=prompts_dir,
    )
    proposals = await agent.analyze()
    return AgentRun(
        proposals=tuple(proposals),
        calls=tuple(agent.context.calls),
        notes=tuple(agent.context.notes),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes; hidden ones (locks, journals) are left out."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.read_bytes()
    return found


class AgentContract:
    """What every agent does. A subclass says which agent, and what it finds to look at."""

    agent_cls: ClassVar[type[BaseAgent]]
    now: ClassVar[datetime] = NOON

    def prepare(self, folder: Path) -> None:
        """Put into the empty `folder` what the agent looks at; it must lead to at least one proposal."""

    def settings(self, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002 - subclasses may need it
        """The agent's table of the configuration; relative paths start at `folder`."""
        return {}

    def model(self) -> LLMClient | None:
        """The model that it is run with, a new one at each call; None for rules only."""
        return None

    def world(self, folder: Path) -> Any:
        """What the agent can change, as a value to compare; agents that act elsewhere override it."""
        return files_of(folder)

    def agent(self, folder: Path, llm: LLMClient | None) -> BaseAgent:
        """The agent before `folder`, as the daemon would make it."""
        return make_agent(
            self.agent_cls,
            llm=llm,
            settings=self.settings(folder),
            now=self.now,
            base_dir=folder,
            data_dir=folder.parent / f"{folder.name}-data",
        )

    def fresh(self, tmp_path: Path, name: str = "world") -> Path:
        """A prepared folder."""
        folder = tmp_path / name
        folder.mkdir(parents=True)
        self.prepare(folder)
        return folder

    @asynccontextmanager
    async def ready(self, folder: Path) -> AsyncIterator[BaseAgent]:
        """The agent with the subclass's model, which is closed afterwards."""
        llm = self.model()
        try:
            yield self.agent(folder, llm)
        finally:
            if llm is not None:
                await llm.aclose()

    async def proposals(self, folder: Path) -> list[Proposal]:
        """What one run proposes."""
        async with self.ready(folder) as agent:
            return await agent.analyze()

    async def test_it_finds_something_to_propose_in_what_was_prepared(self, tmp_path: Path) -> None:
        assert await self.proposals(self.fresh(tmp_path))

    async def test_looking_changes_nothing(self, tmp_path: Path) -> None:
        folder = self.fresh(tmp_path)
        before = self.world(folder)
        await self.proposals(folder)
        assert self.world(folder) == before

    async def test_looking_again_proposes_the_same(self, tmp_path: Path) -> None:
        folder = self.fresh(tmp_path)
        first, second = [await self.proposals(folder) for _ in range(2)]
        assert {p.fingerprint: p.digest for p in first} == {p.fingerprint: p.digest for p in second}
        assert {p.fingerprint: p.evidence_hash for p in first} == {
            p.fingerprint: p.evidence_hash for p in second
        }

    async def test_no_two_proposals_of_a_run_are_for_the_same_change(self, tmp_path: Path) -> None:
        counts = Counter(p.fingerprint for p in await self.proposals(self.fresh(tmp_path)))
        assert [fingerprint for fingerprint, count in counts.items() if count > 1] == []

    async def test_its_proposals_are_whole(self, tmp_path: Path) -> None:
        async with self.ready(self.fresh(tmp_path)) as agent:
            for proposal in await agent.analyze():
                _assert_whole(agent, proposal)

    async def test_its_prompt_templates_can_be_read(self, tmp_path: Path) -> None:
        templates = self.agent(self.fresh(tmp_path), None).templates
        for name in await asyncio.to_thread(templates.names):
            await asyncio.to_thread(templates.get, name)  # raises, and says which line is wrong

    async def test_without_a_model_it_goes_on_by_rules_or_says_that_it_needs_one(
        self, tmp_path: Path
    ) -> None:
        agent = self.agent(self.fresh(tmp_path), None)
        try:
            proposals = await agent.analyze()
        except LLMError:
            return
        assert {p.decided_by for p in proposals} <= {"rule"}

    async def test_a_model_that_fails_leads_to_rules_or_to_a_model_error(self, tmp_path: Path) -> None:
        from llm.testing import ScriptedBackend  # noqa: PLC0415 - for tests only

        async with ScriptedBackend(_failing) as llm:
            try:
                proposals = await self.agent(self.fresh(tmp_path), llm).analyze()
            except LLMError:
                return
        assert {p.decided_by for p in proposals} <= {"rule"}

    async def test_canned_answers_of_the_mock_backend_decide_nothing(self, tmp_path: Path) -> None:
        async with get_llm_client(LLMConfig(backend="mock", enable_cache=False)) as llm:
            proposals = await self.agent(self.fresh(tmp_path), llm).analyze()
        assert {p.decided_by for p in proposals} <= {"rule"}

    async def test_what_is_applied_twice_happens_once(self, tmp_path: Path) -> None:
        async for proposal, folder in self._approved(tmp_path):
            async with self.ready(folder) as agent:
                undo_data = await agent.apply(proposal)
            after = self.world(folder)
            async with self.ready(folder) as agent:  # as after a crash: another instance, the same proposal
                assert await agent.apply(proposal) == undo_data
            assert self.world(folder) == after
            canonical_json(undo_data)

    async def test_what_is_undone_is_as_it_was(self, tmp_path: Path) -> None:
        async for proposal, folder in self._approved(tmp_path):
            if not proposal.reversible:
                continue
            before = self.world(folder)
            async with self.ready(folder) as agent:
                undo_data = await agent.apply(proposal)
            applied = proposal.with_changes(status=ProposalStatus.UNDOING, undo_data=undo_data)
            for _ in range(2):  # once, and again as after a crash
                async with self.ready(folder) as agent:
                    await agent.undo(applied)
                assert self.world(folder) == before

    async def _approved(self, tmp_path: Path) -> AsyncIterator[tuple[Proposal, Path]]:
        """Each proposal on its way to being applied, with a folder of its own to be applied in."""
        if self.agent_cls.apply is BaseAgent.apply:
            msg = f"{self.agent_cls.name} only informs: it has no apply()"
            raise SkipTest(msg)
        count = len(await self.proposals(self.fresh(tmp_path)))
        for number in range(1, count + 1):
            folder = self.fresh(tmp_path, f"world-{number}")
            proposal = (await self.proposals(folder))[number - 1]
            yield (
                proposal.with_changes(id=number, status=ProposalStatus.APPLYING, run_id="test"),
                folder,
            )


def _failing(_: LLMRequest) -> ServerError:
    return ServerError("the model of this test fails")


def _assert_whole(agent: BaseAgent, proposal: Proposal) -> None:
    """What a proposal needs beyond what its class already checks."""
    assert proposal.agent == agent.name
    assert "\n" not in proposal.title, "a title is one line"
    assert proposal.explanation.strip(), "the person who decides needs an explanation"
    calls = {call.id for call in agent.context.calls}
    assert set(proposal.call_ids) <= calls, "call_ids are those of this run's model calls"
    if proposal.decided_by != "rule":
        assert proposal.call_ids, "what a model decided names the call"
    if proposal.kind in agent.payloads:
        agent.payloads[proposal.kind].model_validate(dict(proposal.payload))
    if type(agent).apply is not BaseAgent.apply and proposal.reversible:
        assert type(agent).undo is not BaseAgent.undo, "what says that it is reversible needs undo()"
    if proposal.expires_at is not None:
        assert proposal.expires_at > agent.context.now(), "it would be expired before anybody saw it"
