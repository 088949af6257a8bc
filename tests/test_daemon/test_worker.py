"""An agent in a process of its own is handed all that one in this process is; its end is told in words."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.config import AgentConfig
from agents.context import AgentContext
from agents.errors import AgentError
from agents.proposal import Proposal, ProposalStatus
from agents.registry import AgentEntry
from daemon.errors import DecisionRefused
from daemon.events import RunOutcome, RunResult
from daemon.maker import is_isolated
from daemon.runtime import Runtime, open_runtime
from daemon.settings import DaemonSettings, Settings
from daemon.worker.agent import IsolatedAgent, ended
from daemon.worker.host import MAX_ASKS, Launch, Worker
from daemon.worker.limits import Limits
from daemon.worker.process import PROGRAM
from daemon.worker.wire import heard, spoken
from llm import BudgetExceeded, LLMConfig, LLMError, NoModel, RateLimited, register_backend
from llm.events import CallEvent, ToolFinished, ToolStarted
from llm.testing import ScriptedBackend
from llm.types import Caller, Chunk, Embeddings, EmbedRequest, LLMRequest
from tests.support.canary import CANARY, shows_key
from tests.support.plugins import plugin_folder, source_of
from tests.support.stores import Clock, line, run_result, settings_for
from tests.support.waiting import seen

_S = ProposalStatus
MOCK = LLMConfig(backend="mock", enable_cache=False)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin folder for all tests, since each new one is looked at by a process."""
    return plugin_folder(tmp_path_factory.mktemp("shelf"), helpful=source_of("helpful"))


@pytest.fixture
async def open_(tmp_path: Path, shelf: Path) -> AsyncIterator[Open]:
    """Opens a runtime with the agent "helpful" as a plugin; its table is the first argument."""
    async with AsyncExitStack() as stack:

        async def opener(table: dict[str, Any] | None = None, **options: Any) -> Runtime:
            daemon = DaemonSettings(data_dir=tmp_path / "data", plugin_dir=options.pop("plugin_dir", shelf))
            agents = {"helpful": table or {}}
            settings = await asyncio.to_thread(Settings, daemon=daemon, base_dir=tmp_path, agents=agents)
            options = {"llm_config": MOCK, **options}
            return await stack.enter_async_context(open_runtime(settings, **options))

        yield opener


async def saw(runtime: Runtime) -> dict[str, Any]:
    """What the agent saw in the run that is made now."""
    result = await runtime.runner.run("helpful")
    assert result.error is None, result
    seen_by_it: dict[str, Any] = result.proposals[0].payload["seen"]
    return seen_by_it


async def test_it_is_handed_all_that_an_agent_in_this_process_is(
    open_: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    found, results = [], []
    for isolation in ("none", "process"):
        clock = Clock()
        runtime = await open_({"colour": "context", "isolation": isolation}, now=clock)
        async with runtime.db.write() as connection:
            await runtime.proposals.save_new(
                connection,
                [line("open", agent="helpful"), line("stale", agent="helpful", trouble="stale")],
                agent="helpful",
                run_id=f"before {isolation}",
                now=clock(),
                max_new=5,
                max_open=5,
            )
            await runtime.runs.save(connection, run_result(f"before {isolation}", agent="helpful"), [])
        result: RunResult = await runtime.runner.run("helpful")
        assert result.error is None, result
        found.append({**result.proposals[0].payload["seen"], "run_id": "", "now": ""})
        results.append((result.outcome, result.notes, result.withdrawn))
        at = result.proposals[0].payload["seen"]["now"]
        assert at.startswith("2026-03-01T12:00:0"), at  # the clock that it was given
        assert result.proposals[0].payload["seen"]["run_id"] == result.run_id
        for proposal in await runtime.proposals.list():
            if proposal.status is _S.PENDING:
                await runtime.desk.reject(int(proposal.id or 0), "ana", "test")
        async with runtime.db.write() as connection:
            await connection.exec_driver_sql("DELETE FROM proposal_events")
            await connection.exec_driver_sql("DELETE FROM proposals")
    assert found[0] == found[1]
    assert results[0] == results[1] == (RunOutcome.SUCCEEDED, ("one note", "another"), 1)
    assert found[1]["open"] == ["Write open"]
    said = [record for record in caplog.records if "line" in vars(record) and record.name == "agents.helpful"]
    assert [record.line for record in said] == ["printed by the agent"]  # type: ignore[attr-defined]


def test_plugins_are_isolated_and_others_are_not_unless_their_table_says_otherwise() -> None:
    for origin, isolation, expected in (
        ("plugin", None, True),
        ("plugin", "none", False),
        ("built-in", None, False),
        ("entry point", None, False),
        ("code", None, False),
        ("built-in", "process", True),
    ):
        entry = AgentEntry("a", origin, "somewhere")  # type: ignore[arg-type]
        assert is_isolated(AgentConfig(name="a", isolation=isolation), entry) is expected  # type: ignore[arg-type]


async def test_a_built_in_agent_can_be_isolated_too(tmp_path: Path) -> None:
    said = []
    for isolation in ("none", "process"):
        settings = await settings_for(tmp_path, matchmaker={"isolation": isolation})
        async with open_runtime(settings, llm_config=MOCK) as runtime:
            said.append((await runtime.runner.run("matchmaker")).error)
    assert said[0] is not None  # it finds no tables here
    assert said[0] == said[1]


async def test_the_owners_templates_are_used_there(open_: Open, tmp_path: Path) -> None:
    folder = tmp_path / "prompts" / "helpful"
    folder.mkdir(parents=True)
    (folder / "ask.j2").write_text("What is {{ thing | untrusted }}?")
    runtime = await open_({"colour": "template"})
    await saw(runtime)
    (call,) = await runtime.runs.calls_of((await runtime.runs.list())[0].run_id)
    assert "pot" in call.prompt
    assert call.template.startswith("helpful/ask@")


PIECES = 200_000


class Vectors(ScriptedBackend):
    """Also makes vectors, and counts the pieces of its streams."""

    streaming = given = 0

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        self.streaming += 1
        try:
            async with aclosing(super().send_stream(request)) as chunks:
                async for chunk in chunks:
                    self.given += 1
                    yield chunk
        finally:
            self.streaming -= 1

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        vectors = tuple((float(len(text)), 0.1, -1 / 3) for text in request.texts)
        return Embeddings(vectors=vectors, model=request.model, backend=self.backend, prompt_tokens=2)


def scripted(monkeypatch: pytest.MonkeyPatch, *replies: Any) -> list[Vectors]:
    """Make a backend "scripted" whose answers are written beforehand; every client that was made."""
    made: list[Vectors] = []

    class Scripted(Vectors):
        backend = "scripted"

        def __init__(self, config: LLMConfig, **options: Any) -> None:
            super().__init__(*replies, config=config, **options)
            made.append(self)

    register_backend("scripted", Scripted)
    return made


def scripted_config(tmp_path: Path, **values: Any) -> LLMConfig:
    return LLMConfig(**{"backend": "scripted", "model": "m", "cache_dir": str(tmp_path / "cache"), **values})


async def test_a_model_is_asked_with_the_same_calls_tokens_and_cache_hits_as_in_this_process(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for isolation in ("none", "process"):
        made = scripted(monkeypatch, "a pot", '{"colour": "blue"}')
        config = scripted_config(tmp_path, cache_dir=str(tmp_path / isolation))
        runtime = await open_({"colour": "model", "isolation": isolation}, llm_config=config)
        result = await runtime.runner.run("helpful")
        assert result.error is None, result
        calls = await runtime.runs.calls_of(result.run_id)
        asked = [
            (
                c.prompt,
                c.system_prompt,
                c.reply,
                c.backend,
                c.model,
                c.prompt_tokens,
                c.completion_tokens,
                c.cached,
            )
            for c in calls
        ]
        total = (
            result.calls,
            result.cached_calls,
            result.prompt_tokens,
            result.completion_tokens,
            result.model,
        )
        callers = [request.caller for request in made[-1].requests]
        assert {(caller.agent, caller.run_id) for caller in callers} == {("helpful", result.run_id)}
        assert [caller.task for caller in callers] == ["title", ""]
        kept.append((asked, total))
    assert kept[0] == kept[1]
    assert kept[1][1][:2] == (3, 1)


async def test_everything_that_a_client_can_do_works_there(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scripted(monkeypatch, ["one ", "two"], '{"colour": "blue"}', "4")
    runtime = await open_({"colour": "client"}, llm_config=scripted_config(tmp_path))
    found = await saw(runtime)
    assert found["pieces"] == ["one ", "two"]
    assert (found["colour"], found["tools"]) == ("blue", "4")
    assert found["vectors"] == [[3.0, 0.1, -1 / 3], [3.0, 0.1, -1 / 3]]
    assert (found["health"], found["able"], found["weights"]) == (True, "m", "")
    assert [tool.name for tool in made[-1].requests[-1].tools] == ["add"]


async def test_an_error_of_the_model_comes_out_there_as_what_it_is(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = BudgetExceeded("the budget is used up", retry_after=90.0, budget="1 usd/day", used=1.5)
    scripted(monkeypatch, error)
    runtime = await open_({"colour": "fails"}, llm_config=scripted_config(tmp_path, retries=0))
    found = dict(await saw(runtime))
    assert len(found.pop("call_id")) == 32
    assert found == {
        "kind": "BudgetExceeded",
        "words": "the budget is used up",
        "after": 90.0,
        "retry_after": 90.0,
        "budget": "1 usd/day",
        "used": 1.5,
    }
    (call,) = await runtime.runs.calls_of((await runtime.runs.list())[0].run_id)
    assert call.error == "budget"


async def test_what_it_does_not_wait_for_any_more_ends_here_too(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()

    async def long(_: Any) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    made = scripted(monkeypatch, [f"{n} " for n in range(PIECES)], long)
    config = scripted_config(tmp_path, enable_cache=False)
    runtime = await open_({"colour": "abandons"}, llm_config=config)
    assert await saw(runtime) == {"gave up": True}
    await seen(lambda: cancelled.is_set() and made[-1].streaming == 0)
    assert 0 < made[-1].given < PIECES


async def test_without_a_model_there_is_none_there(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = await open_({"colour": "fails"}, llm_config=None, with_llm=False)
    assert (await saw(runtime))["kind"] == "NoModel"


async def test_no_key_is_in_the_worker(open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLM_API_KEY", "OPENAI_API_KEY", "CREDENTIALS_DIRECTORY", "PYTHON_API_KEY", "MY_SECRET"):
        monkeypatch.setenv(name, CANARY)
    scripted(monkeypatch, "unused")
    config = scripted_config(tmp_path, api_key=CANARY, api_base=f"http://u:{CANARY}@127.0.0.1:1")
    runtime = await open_({"colour": "spy"}, llm_config=config)
    found = await saw(runtime)
    assert "PATH" in found["environ"]
    assert "PATH=" in found["proc"]
    assert not shows_key(json.dumps(found))
    assert not [name for name in found["environ"] if name.startswith(("LLM_", "ASKFIRST_"))]


async def test_what_was_asked_and_noted_before_a_worker_was_killed_is_kept(open_: Open) -> None:
    runtime = await open_({"colour": "late", "timeout": "3s"})
    result = await runtime.runner.run("helpful")
    assert (result.outcome, result.calls, result.notes) == (RunOutcome.TIMED_OUT, 1, ("before the end",))


async def test_an_error_of_the_agent_is_said_in_its_own_words(open_: Open) -> None:
    runtime = await open_({"colour": "breaks"})
    result = await runtime.runner.run("helpful")
    assert (result.outcome, result.error) == (RunOutcome.FAILED, "the cupboard is locked")


async def test_a_cancelled_run_leaves_no_process(open_: Open) -> None:
    runtime = await open_({"colour": "late"})
    task = asyncio.create_task(runtime.runner.run("helpful"))
    await seen(lambda: bool(workers()))
    (child,) = workers()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running()
    assert (await runtime.runs.list())[0].outcome is RunOutcome.CANCELLED


def workers() -> list[psutil.Process]:
    """The workers of this process."""
    return [child for child in psutil.Process().children() if str(PROGRAM) in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# Decisions.


async def kept(runtime: Runtime, trouble: str = "") -> int:
    """The number of a proposal of the agent that waits."""
    proposal = Proposal(
        agent="helpful",
        kind="note",
        title="A note",
        explanation="",
        payload={"text": "x", "trouble": trouble},
        fingerprint=f"note {trouble}",
    )
    async with runtime.db.write() as connection:
        ((_, found),) = await runtime.proposals.save_new(
            connection,
            [proposal.with_changes(expires_at=runtime_now(runtime) + timedelta(hours=1))],
            agent="helpful",
            run_id=f"run {trouble}",
            now=runtime_now(runtime),
            max_new=5,
            max_open=50,
        )
        await runtime.runs.save(connection, run_result(f"run {trouble}", agent="helpful"), [])
    return int(found.id or 0)


def runtime_now(runtime: Runtime) -> Any:
    return runtime.desk._now()


async def test_what_is_approved_is_applied_and_undone_there(open_: Open, tmp_path: Path) -> None:
    runtime = await open_()
    number = await kept(runtime)
    edited = await runtime.desk.edit(number, {"text": "x"} | {"trouble": "none"}, "ana", "test")
    assert edited.payload == {"text": "x", "trouble": "none"}
    with pytest.raises(DecisionRefused, match="text: must not be empty"):
        await runtime.desk.edit(number, {"text": ""}, "ana", "test")
    applied = await runtime.desk.approve(number, "ana", "test")
    assert (applied.status, applied.undo_data, applied.error) == (
        _S.APPLIED,
        {"text": "x", "of": number},
        None,
    )
    assert (await runtime.desk.undo(number, "ana", "test")).status is _S.UNDONE
    data = tmp_path / "data" / "agents" / "helpful"
    assert (data / f"{number}.undone").exists()
    assert (data / f"{number}.begun").read_text() != f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("trouble", "status", "words"),
    [
        ("precondition", _S.WITHDRAWN, "the page is gone"),
        ("source", _S.APPLY_FAILED, "book.txt, line 3: no number"),
        ("odd", _S.APPLIED, "its undo data cannot be kept: TypeError"),
        ("large", _S.APPLIED, "its undo data cannot be kept: they are 3,000,019 bytes of JSON"),
    ],
)
async def test_what_goes_wrong_there_is_told_as_if_it_had_happened_here(
    open_: Open, trouble: str, status: ProposalStatus, words: str
) -> None:
    runtime = await open_()
    done = await runtime.desk.approve(await kept(runtime, trouble), "ana", "test")
    assert done.status is status
    assert words in str(done.error)


async def test_an_apply_whose_process_was_killed_says_so_and_is_done_when_tried_again(open_: Open) -> None:
    runtime = await open_()
    number = await kept(runtime, "killed once")
    failed = await runtime.desk.approve(number, "ana", "test")
    assert failed.status is _S.APPLY_FAILED
    assert "its process was killed by SIGKILL" in str(failed.error)
    assert (await runtime.desk.apply(number, "ana", "test")).status is _S.APPLIED


async def test_an_apply_that_takes_too_long_is_killed(open_: Open, tmp_path: Path) -> None:
    runtime = await open_()
    runtime.desk._executor._limit = timedelta(seconds=2)
    number = await kept(runtime, "hangs")
    failed = await runtime.desk.approve(number, "ana", "test")
    assert "took longer than 2s" in str(failed.error)
    pid = int((tmp_path / "data" / "agents" / "helpful" / f"{number}.begun").read_text())
    assert not psutil.pid_exists(pid)


async def test_an_agent_that_cannot_be_loaded_there_takes_no_decision(open_: Open, tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, helpful=source_of("helpful"))
    runtime = await open_(plugin_dir=folder)
    number = await kept(runtime)
    file = tmp_path / "data" / "plugins" / "helpful.py"
    await runtime.runner.run("helpful")  # it has looked at its settings
    file.write_text("import os; os._exit(9)")
    with pytest.raises(AgentError, match="ended by itself, with exit code 9"):
        await runtime.desk.approve(number, "ana", "test")
    assert (await runtime.proposals.get(number)).status is _S.PENDING
    file.write_text("from agents import BaseAgent\nclass Other(BaseAgent):\n  async def analyze(self): ...")
    with pytest.raises(AgentError, match="defines no agent 'helpful' any more"):
        await runtime.desk.approve(number, "ana", "test")


# One worker by itself.


def launch(folder: Path, **limits: Any) -> Launch:
    known = {"agent": "harmless", "memory_mb": 1024, "cpu_seconds": 60, "max_bytes": 1_000_000, **limits}
    watch = known.pop("watch_memory", False)
    file = plugin_folder(folder, killers=source_of("killers")) / "killers.py"
    name = known["agent"]
    return Launch(entry=AgentEntry(name, "plugin", str(file)), limits=Limits(**known), watch_memory=watch)


def context_for(folder: Path) -> AgentContext:
    return AgentContext(base_dir=folder, data_dir=folder / "data" / "agents" / "x")


async def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed outright; its worker, which blocks, and what that started are gone."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.test_daemon.test_worker import context_for, launch\n"
        "from daemon.worker.host import Worker\n"
        "async def main():\n"
        "    folder = Path(sys.argv[1])\n"
        "    worker = Worker(launch(folder, agent='blocks'), context_for(folder))\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await worker.order('analyze', still=[])\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(  # noqa: ASYNC220 - a parent that blocks nobody while it starts
        [sys.executable, "-P", str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        await seen(lambda: bool(list((tmp_path / "data" / "agents" / "x").glob("*.pid"))))
        parent.send_signal(signal.SIGKILL)
    await seen(lambda: not psutil.pid_exists(pid), limit=10)


async def test_where_the_system_does_not_bind_memory_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac: the worker is told a limit that does not bind, and the parent looks each second."""
    monkeypatch.setattr("daemon.worker.host._LOOK_S", 0.05)
    one = launch(tmp_path, agent="leaks", memory_mb=300, watch_memory=True)
    worker = Worker(one, context_for(tmp_path))
    first = worker._first()
    monkeypatch.setattr(worker, "_first", lambda: {**first, "memory_mb": 3_000})
    try:
        with pytest.raises(AgentError, match=r"more than 300 MB of memory; raise agents\.leaks\.max_memory"):
            await worker.order("analyze", still=[])
    finally:
        await worker.end()


async def test_a_model_is_asked_so_many_questions_at_a_time_and_no_more(tmp_path: Path) -> None:
    async def long(_: Any) -> str:
        return await asyncio.Event().wait()  # type: ignore[return-value]  # it never comes so far

    llm = ScriptedBackend(long)
    context = AgentContext(llm=llm, base_dir=tmp_path, data_dir=tmp_path / "x")
    worker = Worker(launch(tmp_path, agent="asks"), context)
    try:
        with pytest.raises(AgentError, match="asked its model more than 1,000 questions at a time"):
            await worker.order("analyze", still=[])
        assert len(llm.requests) == MAX_ASKS
    finally:
        await worker.end()
    await llm.aclose()


async def test_a_tool_that_runs_in_a_worker_is_told_to_the_models_observers_within_bounds(
    tmp_path: Path,
) -> None:
    told: list[CallEvent] = []
    llm = ScriptedBackend(observers=[told.append])
    context = AgentContext(llm=llm, base_dir=tmp_path, data_dir=tmp_path / "x", run_id="r1")
    worker = Worker(launch(tmp_path), context)
    message = {"is": "tool", "tool": "look" * 100, "execution": "e1"}
    worker._take(message, 100)
    worker._take({**message, "latency": 0.5, "error": "OSError"}, 100)
    caller = Caller(agent="harmless", run_id="r1")
    place: dict[str, Any] = {"backend": llm.name, "model": llm.config.model, "caller": caller}
    known = {**place, "tool": "look" * 16, "execution_id": "e1"}
    assert told == [ToolStarted(**known), ToolFinished(**known, latency=0.5, error="OSError")]
    with pytest.raises(ValueError, match="took nan s"):  # which ends the worker, as any nonsense does
        worker._take({**message, "latency": float("nan"), "error": ""}, 100)
    Worker(launch(tmp_path), context_for(tmp_path))._take(message, 100)  # without a model nobody listens


async def test_a_worker_is_started_when_it_is_first_needed_and_ended_once(tmp_path: Path) -> None:
    from tests.support.killers import Killer

    agent = IsolatedAgent.of(Killer, context_for(tmp_path), launch(tmp_path))
    async with ended(agent):
        assert agent.worker.pid == 0
        assert [found.title for found in await agent.analyze()] == ["A thing"]
        assert await agent.recheck((await agent.analyze())[0]) is None  # one worker for all of it
        pid = agent.worker.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    await agent.worker.end()
    with pytest.raises(AgentError):
        await agent.analyze()


async def test_a_program_without_room_for_one_more_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nowhere"))
    worker = Worker(launch(tmp_path), context_for(tmp_path))
    with pytest.raises(AgentError, match="no process could be started for the agent 'harmless'"):
        await worker.order("analyze", still=[])
    await worker.end()


async def test_an_agent_that_is_loaded_for_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.worker.host.START_S", 2.0)
    file = plugin_folder(tmp_path, sleepy="import time; time.sleep(3600)") / "sleepy.py"
    entry = AgentEntry("sleepy", "plugin", str(file))
    limits = Limits(agent="sleepy", memory_mb=512, cpu_seconds=60, max_bytes=1000)
    worker = Worker(Launch(entry=entry, limits=limits), context_for(tmp_path))
    with pytest.raises(AgentError, match="not loaded within 2 s"):
        await worker.start()
    pid = worker.pid
    await worker.end()
    assert not psutil.pid_exists(pid)


# Words and errors.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "its process ended by itself, with exit code 0, before it had answered"),
        (-signal.SIGSEGV, "its process was killed by SIGSEGV"),
        (-signal.SIGXCPU, "SIGXCPU: it used more than 3 s of CPU time; raise agents.a.max_cpu"),
        (-signal.SIGKILL, "killed by SIGKILL, by somebody, or by the system because memory was short"),
        (-63, "its process was killed by signal 63"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(code: int, words: str) -> None:
    assert words in Limits(agent="a", memory_mb=1, cpu_seconds=2.5, max_bytes=1).death(code)


class OwnError(RateLimited):
    """An error of an agent's own."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RateLimited("wait", retry_after=3.0, quota=True), RateLimited, "wait"),
        (OwnError("wait"), RateLimited, "wait"),
        (NoModel("none"), NoModel, "none"),
        (LLMError("any"), LLMError, "any"),
        (ValueError("a value"), ValueError, "a value"),
        (ZeroDivisionError("nought"), AgentError, "ZeroDivisionError: nought"),
        (SystemExit(3), AgentError, "SystemExit: 3"),
        (asyncio.CancelledError(), AgentError, "CancelledError"),
        (AgentError("x" * 10_000), AgentError, "x" * 100),
    ],
)
def test_errors_come_over_as_what_they_are(
    error: BaseException, kind: type[BaseException], words: str
) -> None:
    found = heard(json.loads(json.dumps(spoken(error))))
    assert type(found) is kind
    assert str(found).startswith(words)
    assert len(str(found)) < 5_000
    if isinstance(error, RateLimited):
        assert isinstance(found, RateLimited)
        assert (found.retry_after, found.quota, found.retryable) == (
            error.retry_after,
            error.quota,
            error.retryable,
        )


def test_what_is_no_error_is_refused() -> None:
    with pytest.raises(ValueError, match="an error without words"):
        heard({"kind": "LLMError"})
