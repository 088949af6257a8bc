"""The twins for authors of agents: `run_agent`, and a suite that good agents pass and bad ones do not."""

from __future__ import annotations

import ast
import csv
import inspect
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
from pydantic import BaseModel, ValidationError

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.errors import AgentSettingsError, InvalidProposal, PreconditionFailed, UndoConflict
from agents.proposal import Evidence, Proposal, sha256_of
from agents.testing import NOON, AgentContract, files_of, make_agent, run_agent
from llm import LLMClient, LLMError, NoModel, TemplateError, Templates
from llm.testing import ScriptedBackend
from tests.test_docs.examples import examples_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "write-an-agent.md"
CHECKS = [name for name in dir(AgentContract) if name.startswith("test_")]


class PantrySettings(BaseModel):
    file: str = "pantry.csv"
    days: int = 3


class Use(BaseModel):
    item: str


class Pantry(BaseAgent):
    """Says what should be used soon; `apply` takes it off the list."""

    Settings = PantrySettings
    payloads: ClassVar[Mapping[str, type[BaseModel]]] = {"use": Use}

    @property
    def file(self) -> Path:
        return self.context.base_dir / str(self.settings.file)

    async def analyze(self) -> list[Proposal]:
        last = (self.context.now() + timedelta(days=self.settings.days)).date()
        rows = list(csv.reader(self.file.read_text().splitlines()))
        self.context.notes.append(f"{len(rows)} items")
        return [
            await self.use(item, expires) for item, expires in rows if date.fromisoformat(expires) <= last
        ]

    async def use(self, item: str, expires: str) -> Proposal:
        calls: tuple[str, ...] = ()
        title = f"Use the {item}"
        if self.model_decides:
            try:
                response = await self.use_llm("Name a dish.", item)
            except LLMError:
                self.context.notes.append("no idea")
            else:
                calls, title = (response.call_id,), f"Use the {item} for {response.content}"
        return self.propose(
            "use",
            title,
            explanation=f"It spoils on {expires}.",
            payload={"item": item},
            fingerprint=item,
            evidence=(Evidence.of(self.settings.file, item, f"{item},{expires}"),),
            precondition=sha256_of(f"{item},{expires}"),
            decided_by="blend" if calls else "rule",
            call_ids=calls,
        )

    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        assert self.context.data_dir is not None
        self.context.data_dir.mkdir(exist_ok=True)
        done = self.context.data_dir / str(proposal.id)
        if done.exists():
            return {"text": done.read_text()}
        before = self.file.read_text()
        lines = before.splitlines(keepends=True)
        kept = [line for line in lines if sha256_of(line.strip()) != proposal.precondition]
        if len(kept) == len(lines):
            msg = f"{self.file} no longer has {proposal.payload['item']}"
            raise PreconditionFailed(msg)
        done.write_text(before)
        self.file.write_text("".join(kept))
        return {"text": before}

    async def undo(self, proposal: Proposal) -> None:
        assert proposal.undo_data is not None
        self.file.write_text(proposal.undo_data["text"])


class PantryContract(AgentContract):
    agent_cls = Pantry

    def prepare(self, folder: Path) -> None:
        (folder / "pantry.csv").write_text("milk,2026-05-21\nrice,2027-01-01\ntomatoes,2026-05-23\n")

    def settings(self, folder: Path) -> Mapping[str, Any]:
        return {"days": 4}


class TestPantryByRules(PantryContract):
    """The suite, run by an agent that keeps it."""


class TestPantryWithAModel(PantryContract):
    def model(self) -> LLMClient | None:
        return ScriptedBackend(lambda _: "soup")


class Told(Pantry):
    """Only tells: there is nothing to apply."""

    apply = BaseAgent.apply
    undo = BaseAgent.undo


async def test_run_agent_gives_proposals_calls_and_notes(tmp_path: Path) -> None:
    PantryContract().prepare(tmp_path)
    async with ScriptedBackend("a shake", "sauce") as llm:
        run = await run_agent(Pantry, llm=llm, settings={"days": 4}, now=NOON, base_dir=tmp_path)
    assert [p.title for p in run.proposals] == ["Use the milk for a shake", "Use the tomatoes for sauce"]
    assert [(call.reply, call.at) for call in run.calls] == [("a shake", NOON), ("sauce", NOON)]
    assert run.proposals[0].call_ids == (run.calls[0].id,)
    assert run.notes == ("3 items",)


async def test_run_agent_takes_a_clock_or_the_time_of_day(tmp_path: Path) -> None:
    (tmp_path / "pantry.csv").write_text("milk,2026-05-30\n")
    later = iter([NOON + timedelta(days=9)])
    run = await run_agent(Pantry, now=lambda: next(later), base_dir=tmp_path)
    assert [p.fingerprint for p in run.proposals] == ["milk"]
    (tmp_path / "pantry.csv").write_text(f"milk,{datetime.now(UTC).date()}\n")
    assert len((await run_agent(Pantry, base_dir=tmp_path)).proposals) == 1


async def test_run_agent_starts_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PantryContract().prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len((await run_agent(Pantry, now=NOON)).proposals) == 2


async def test_run_agent_refuses_settings_that_the_agent_does_not_know() -> None:
    with pytest.raises(AgentSettingsError, match="did you mean 'days'"):
        await run_agent(Pantry, settings={"day": 4})


async def test_run_agent_lets_errors_through() -> None:
    class Asks(Told):
        async def analyze(self) -> list[Proposal]:
            await self.use_llm("?")
            return []

    with pytest.raises(NoModel):
        await run_agent(Asks)


def test_make_agent_gives_an_agent_that_can_apply(tmp_path: Path) -> None:
    waits = Pantry().propose("use", "Use it", explanation="", payload={}, fingerprint="x")
    agent = make_agent(Pantry, open_proposals=[waits], base_dir=tmp_path, data_dir=tmp_path / "data")
    assert agent.context.open_proposals == (waits,)
    assert (agent.context.base_dir, agent.context.data_dir) == (tmp_path, tmp_path / "data")


def test_files_of_a_folder_are_all_but_the_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.csv", "sub/b.csv", ".lock", ".journal/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert files_of(tmp_path) == {"a.csv": b"a.csv", str(Path("sub/b.csv")): b"sub/b.csv"}


async def documented() -> dict[str, Any]:
    """What the examples of the documentation define."""
    namespace: dict[str, Any] = {"__name__": "example"}
    for example in examples_of(DOCUMENT, "python"):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(example.code, str(example), "exec", flags, dont_inherit=True)
        result = eval(code, namespace)
        if inspect.isawaitable(result):
            await result
    return namespace


@pytest.mark.parametrize("check", CHECKS)
async def test_the_agent_of_the_documentation_keeps_the_contract(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = (await documented())["TestPantry"]()
    await getattr(suite, check)(tmp_path / "suite")


async def test_the_agent_of_the_documentation_undoes_nothing_that_was_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent_cls = (await documented())["PantryAgent"]
    file = tmp_path / "pantry.csv"
    file.write_text("item,expires\nmilk,2026-01-03\n")
    agent = make_agent(agent_cls, now=NOON, base_dir=tmp_path, data_dir=tmp_path / "data")
    (made,) = await agent.analyze()
    made = made.with_changes(id=1)
    assert await agent.recheck(made) is None
    applied = made.with_changes(undo_data=await agent.apply(made))
    assert await agent.recheck(made) is not None
    file.write_text("item,expires\nkale,2026-01-04\n")
    with pytest.raises(UndoConflict):
        await agent.undo(applied)
    with pytest.raises(PreconditionFailed):
        await agent.apply(made.with_changes(id=2))
    assert file.read_text() == "item,expires\nkale,2026-01-04\n"


# Agents that break the contract, each in one way, and the check that must notice.


class SeesNothing(Pantry):
    async def analyze(self) -> list[Proposal]:
        return []


class WritesWhileLooking(Pantry):
    async def analyze(self) -> list[Proposal]:
        (self.context.base_dir / "seen.txt").write_text("x")
        return await super().analyze()


class ChangesItsMind(Pantry):
    async def analyze(self) -> list[Proposal]:
        return [p.with_changes(payload={"item": os.urandom(4).hex()}) for p in await super().analyze()]


class SeesOtherEvidence(Pantry):
    async def analyze(self) -> list[Proposal]:
        seen = (Evidence.of("clock", "now", os.urandom(4).hex()),)
        return [p.with_changes(evidence=seen) for p in await super().analyze()]


class RepeatsItself(Pantry):
    async def analyze(self) -> list[Proposal]:
        return 2 * await super().analyze()


class Changed(Pantry):
    changes: ClassVar[Mapping[str, Any]]

    async def analyze(self) -> list[Proposal]:
        return [p.with_changes(**self.changes) for p in await super().analyze()]


def changed(**changes: Any) -> type[Changed]:
    return type("Pantry", (Changed,), {"changes": changes})


class FallsOverWithoutAModel(Pantry):
    async def analyze(self) -> list[Proposal]:
        await self.context.llm.generate("?")  # type: ignore[union-attr]
        return await super().analyze()


class FallsOverWithTheModel(Pantry):
    async def analyze(self) -> list[Proposal]:
        try:
            return await super().analyze()
        finally:
            if self.context.notes[-1] == "no idea":
                msg = "what now"
                raise RuntimeError(msg)


class BelievesTheMock(Pantry):
    model_decides = True


class ForgetsThatItApplied(Pantry):
    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        before = self.file.read_text()
        self.file.write_text(before + "x,2030-01-01\n")
        return {"text": before}


class KeepsWhatIsNoJson(Pantry):
    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        return {"at": NOON}


class UndoesHalf(Pantry):
    async def undo(self, proposal: Proposal) -> None:
        assert proposal.undo_data is not None
        self.file.write_text(proposal.undo_data["text"][:-1])


class UndoesOnlyOnce(Pantry):
    async def undo(self, proposal: Proposal) -> None:
        assert proposal.undo_data is not None
        if self.file.read_text() == proposal.undo_data["text"]:
            msg = "it is not applied"
            raise UndoConflict(msg)
        await super().undo(proposal)


class CannotUndo(Pantry):
    undo = BaseAgent.undo


class AsksByABrokenTemplate(Pantry):
    def __init__(self, context: AgentContext | None = None) -> None:
        super().__init__(context)
        folder = self.context.base_dir.parent / "prompts"
        folder.mkdir()
        (folder / "dish.j2").write_text("{{ item")
        self.templates = Templates(folder)


WHOLE = "test_its_proposals_are_whole"
NO_MODEL = "test_without_a_model_it_goes_on_by_rules_or_says_that_it_needs_one"
BROKEN_MODEL = "test_a_model_that_fails_leads_to_rules_or_to_a_model_error"

BREACHES: Sequence[tuple[type[BaseAgent], str, type[Exception]]] = (
    (SeesNothing, "test_it_finds_something_to_propose_in_what_was_prepared", AssertionError),
    (WritesWhileLooking, "test_looking_changes_nothing", AssertionError),
    (ChangesItsMind, "test_looking_again_proposes_the_same", AssertionError),
    (SeesOtherEvidence, "test_looking_again_proposes_the_same", AssertionError),
    (RepeatsItself, "test_no_two_proposals_of_a_run_are_for_the_same_change", AssertionError),
    (changed(agent="another"), WHOLE, AssertionError),
    (changed(title="Two\nlines"), WHOLE, AssertionError),
    (changed(explanation=" "), WHOLE, AssertionError),
    (changed(call_ids=("made up",)), WHOLE, AssertionError),
    (changed(decided_by="model", call_ids=()), WHOLE, AssertionError),
    (changed(payload={"thing": "milk"}), WHOLE, ValidationError),
    (changed(expires_at=NOON), WHOLE, AssertionError),
    (CannotUndo, WHOLE, AssertionError),
    (AsksByABrokenTemplate, "test_its_prompt_templates_can_be_read", TemplateError),
    (FallsOverWithoutAModel, NO_MODEL, AttributeError),
    (changed(decided_by="model"), NO_MODEL, AssertionError),
    (FallsOverWithTheModel, BROKEN_MODEL, RuntimeError),
    (changed(decided_by="model"), BROKEN_MODEL, AssertionError),
    (BelievesTheMock, "test_canned_answers_of_the_mock_backend_decide_nothing", AssertionError),
    (ForgetsThatItApplied, "test_what_is_applied_twice_happens_once", AssertionError),
    (KeepsWhatIsNoJson, "test_what_is_applied_twice_happens_once", InvalidProposal),
    (UndoesHalf, "test_what_is_undone_is_as_it_was", AssertionError),
    (UndoesOnlyOnce, "test_what_is_undone_is_as_it_was", UndoConflict),
)


@pytest.mark.parametrize(
    ("agent_cls", "check", "error"), BREACHES, ids=[f"{a.__name__}-{c[5:40]}" for a, c, _ in BREACHES]
)
async def test_the_suite_notices_an_agent_that_breaks_it(
    agent_cls: type[BaseAgent], check: str, error: type[Exception], tmp_path: Path
) -> None:
    suite = type("Suite", (PantryContract,), {"agent_cls": agent_cls})()
    with pytest.raises(error):
        await getattr(suite, check)(tmp_path)


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_of_the_suite_has_an_agent_that_breaks_it(check: str) -> None:
    assert check in {name for _, name, _ in BREACHES}


async def test_an_agent_that_only_tells_skips_what_is_about_applying(tmp_path: Path) -> None:
    suite = type("Suite", (PantryContract,), {"agent_cls": Told})()
    with pytest.raises(SkipTest, match="told only informs"):
        await suite.test_what_is_undone_is_as_it_was(tmp_path)


@pytest.mark.parametrize("check", [NO_MODEL, BROKEN_MODEL])
async def test_an_agent_may_need_a_model_as_long_as_it_says_so(check: str, tmp_path: Path) -> None:
    class Asks(Pantry):
        async def analyze(self) -> list[Proposal]:
            await self.use_llm("?")
            return []

    suite = type("Suite", (PantryContract,), {"agent_cls": Asks})()
    await getattr(suite, check)(tmp_path)


async def test_what_is_said_to_be_irreversible_is_not_undone(tmp_path: Path) -> None:
    class Final(CannotUndo):
        async def analyze(self) -> list[Proposal]:
            return [p.with_changes(reversible=False) for p in await super().analyze()]

    suite = type("Suite", (PantryContract,), {"agent_cls": Final})()
    await suite.test_its_proposals_are_whole(tmp_path)
    await suite.test_what_is_undone_is_as_it_was(tmp_path / "again")
