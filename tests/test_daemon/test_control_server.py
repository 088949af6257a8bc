"""The control socket with a real database behind it: who may ask what, and that nobody can harm it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.proposal import ProposalStatus
from daemon.control import server as serving
from daemon.control import wire
from daemon.control.client import Connection, connected
from daemon.control.lock import Holder, daemon_lock
from daemon.control.operations import Operation, Operations, Takes, table_of
from daemon.control.peers import Peer
from daemon.control.reach import daemon_of, reached, signs_of
from daemon.control.remote import RemoteDesk, RemoteRuntime
from daemon.control.server import ControlServer
from daemon.controls import Controls
from daemon.errors import (
    ControlError,
    DaemonAbsent,
    DaemonError,
    DaemonGone,
    DaemonSilent,
    DecisionRefused,
    ExitCode,
    NotAllowed,
    NotUnderstood,
    OtherVersion,
    ProposalNotFound,
)
from daemon.events import AgentState
from daemon.proposals import ProposalDesk
from daemon.runtime import Runtime, open_runtime
from daemon.settings import DaemonSettings, Settings
from daemon.store.due_times import DueTimeStore
from daemon.store.proposals import ProposalStore
from daemon.store.runs import RunStore
from daemon.store.states import StateStore
from daemon.version import own_version
from tests.support.stores import AGENT, LedgerAgent, line, run_result
from tests.support.waiting import seen

ME = Peer(os.geteuid(), "me", trusted=True)
HELLO = {"version": own_version(), "protocol": wire.PROTOCOL}
GUEST = Peer(12345, "guest", trusted=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(daemon=DaemonSettings(data_dir=tmp_path / "data"), base_dir=tmp_path)


class Served:
    """A daemon's half: a runtime, and the socket in front of it."""

    def __init__(self, settings: Settings, runtime: Runtime, own: Holder, server: ControlServer) -> None:
        self.settings = settings
        self.runtime = runtime
        self.own = own
        self.server = server
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def path(self) -> str:
        return str(self.server.path)

    async def keep(self, **fields: Any) -> int:
        """One more proposal; returns its number."""
        runtime, now = self.runtime, datetime.now(UTC)
        proposal = line(expires_at=now + timedelta(days=1), **fields)
        name = f"run-{len(await runtime.runs.list(limit=None))}"
        async with runtime.db.write() as connection:
            ((_, kept),) = await runtime.proposals.save_new(
                connection, [proposal], agent=AGENT, run_id=name, now=now, max_new=9, max_open=99
            )
            await runtime.runs.save(connection, run_result(name))
        assert kept.id is not None
        return kept.id

    @asynccontextmanager
    async def remote(self) -> AsyncIterator[RemoteRuntime]:
        """A command's half."""
        signs = await asyncio.to_thread(signs_of, self.settings)
        async with daemon_of(self.settings, signs) as daemon:
            yield daemon

    async def speak(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has said nothing yet."""
        reader, writer = await asyncio.open_unix_connection(self.path, **options)
        self._writers.append(writer)
        return reader, writer

    async def hang_up(self) -> None:
        """End those connections."""
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


def everything(runtime: Runtime) -> dict[str, Operation]:
    async def nothing() -> Any:
        return ()

    scheduler: Any = SimpleNamespace(run_once=nothing)
    return table_of(runtime, scheduler, runtime.controls, reload=nothing, status=nothing)


@asynccontextmanager
async def serving_on(settings: Settings, **options: Any) -> AsyncIterator[Served]:
    more = options.pop("more", {})
    async with (
        daemon_lock(settings.daemon.data_dir) as own,
        open_runtime(settings, with_llm=False, agents=[LedgerAgent]) as runtime,
    ):
        table = {**everything(runtime), **more}
        server = ControlServer(Operations(lambda: table), settings.daemon.data_dir, own, **options)
        await server.start()
        both = Served(settings, runtime, own, server)
        try:
            yield both
        finally:
            await both.hang_up()
            await server.aclose()


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[Served]:
    async with serving_on(settings) as all_of_it:
        yield all_of_it


def unasked() -> RemoteRuntime:
    """A command's half that has no other."""
    nothing: Any = None
    return RemoteRuntime(Settings(), Connection(nothing, nothing))


class TestWhatIsThere:
    def test_a_command_finds_in_the_daemon_what_it_finds_in_a_runtime_of_its_own(self) -> None:
        """Where these differ a command would work without a daemon only."""
        own = {"db", "events", "housekeeping", "llm", "llm_observers", "runner", "selection"}
        assert set(Runtime.__dataclass_fields__) - own <= set(vars(unasked())) | set(vars(RemoteRuntime))
        for name in own:
            with pytest.raises(AttributeError, match=f"{name} is the daemon's own"):
                getattr(unasked(), name)

    @pytest.mark.parametrize("name", ["approve", "reject", "edit", "snooze", "apply", "undo"])
    def test_decisions_take_the_same_at_both_ends(self, name: str) -> None:
        here, there = (inspect.signature(getattr(kind, name)) for kind in (RemoteDesk, ProposalDesk))
        assert here == there

    def test_what_is_read_takes_the_same_at_both_ends(self) -> None:
        remote = unasked()
        kinds = {
            "proposals": ProposalStore,
            "runs": RunStore,
            "due_times": DueTimeStore,
            "states": StateStore,
            "controls": Controls,
        }
        for attribute, kind in kinds.items():
            half = getattr(remote, attribute)
            for name in (name for name in vars(type(half)) if not name.startswith("_")):
                ours = inspect.signature(getattr(type(half), name))
                theirs = inspect.signature(getattr(kind, name))
                common = {n: p for n, p in theirs.parameters.items() if n in ours.parameters}
                assert dict(ours.parameters) == common, f"{attribute}.{name}"
        assert {n for n in vars(Controls) if not n.startswith("_")} <= set(vars(type(remote.controls)))

    async def test_the_table_takes_what_its_functions_take(self, served: Served) -> None:
        for name, operation in everything(served.runtime).items():
            known = inspect.signature(operation.call).parameters
            assert operation.takes.keys() <= known.keys(), name
            assert operation.needed() <= operation.takes.keys(), name


class TestAskingForThings:
    async def test_everything_that_is_read_comes_back_as_it_is(self, served: Served) -> None:
        first, second = await served.keep(text="one"), await served.keep(text="two", fingerprint="2")
        runtime = served.runtime
        async with served.remote() as daemon:
            assert await daemon.proposals.get(first) == await runtime.proposals.get(first)
            assert await daemon.proposals.list() == await runtime.proposals.list()
            both = [ProposalStatus.PENDING, ProposalStatus.SNOOZED]
            assert [p.id for p in await daemon.proposals.list(status=both, limit=1)] == [second]
            assert await daemon.proposals.list(status=ProposalStatus.APPLIED, agent=AGENT) == ()
            assert await daemon.proposals.counts() == {(AGENT, ProposalStatus.PENDING): 2}
            assert await daemon.proposals.events(first) == await runtime.proposals.events(first)
            assert await daemon.proposals.open_for(AGENT) == await runtime.proposals.open_for(AGENT)
            assert await daemon.proposals.turned_down(AGENT) == {}
            (run, *_) = await daemon.runs.list(agent=AGENT)
            assert run == await daemon.runs.get(run.run_id)
            assert (await runtime.runs.list())[0] == run
            assert await daemon.runs.calls_of(run.run_id) == ()
            assert await daemon.runs.calls_by_id(iter(["x"])) == ()
            assert await daemon.due_times.list() == ()
            assert await daemon.due_times.last(AGENT) is None
            assert await daemon.due_times.settled(AGENT, datetime.now(UTC)) is None
            assert (await daemon.states.get(AGENT)).state is AgentState.ACTIVE
            assert await daemon.states.all() == {}

    async def test_decisions_are_carried_out_and_told_in_the_daemon(self, served: Served) -> None:
        told: list[Any] = []
        served.runtime.events.subscribe(told.append)
        number = await served.keep()
        async with served.remote() as daemon:
            edited = await daemon.desk.edit(number, {"count": 2}, "ana", "cli", "more")
            assert edited.payload["count"] == 2
            until = datetime.now(UTC) + timedelta(hours=2)
            snoozed = await daemon.desk.snooze(number, until, "ana", "cli")
            assert snoozed.snoozed_until == until
            approved = await daemon.desk.approve(number, "ana", "cli", "good", edited.digest, apply=False)
            assert approved.status is ProposalStatus.APPROVED
            applied = await daemon.desk.apply(number, "luis", "cli")
            assert applied.status is ProposalStatus.APPLIED
            assert (await daemon.desk.undo(number, "luis", "cli", "oh")).status is ProposalStatus.UNDONE
            other = await served.keep(fingerprint="other")
            rejected = await daemon.desk.reject(other, "ana", "cli", "no", None)
            assert rejected.status is ProposalStatus.REJECTED
        assert [event.proposal.status.value for event in told][-3:] == ["undoing", "undone", "rejected"]

    async def test_a_refusal_is_the_same_one_at_this_end(self, served: Served) -> None:
        number = await served.keep()
        async with served.remote() as daemon:
            with pytest.raises(ProposalNotFound, match="there is no proposal 77;"):
                await daemon.proposals.get(77)
            with pytest.raises(DecisionRefused, match="approve it first"):
                await daemon.desk.apply(number, "ana", "cli")
            with pytest.raises(DaemonError, match="there is no run 'x'"):
                await daemon.runs.get("x")
            assert (await daemon.proposals.get(number)).status is ProposalStatus.PENDING

    async def test_agents_are_paused_and_resumed(self, served: Served) -> None:
        async with served.remote() as daemon:
            paused = await daemon.controls.pause(AGENT, "ana", "on holiday")
            assert (paused.state, paused.by, paused.reason) == (AgentState.PAUSED, "ana", "on holiday")
            assert (await daemon.controls.why(AGENT)).status.state is AgentState.PAUSED
            assert (await daemon.controls.resume(AGENT, "ana")).state is AgentState.ACTIVE
            assert await daemon.states.all() == await served.runtime.states.all()

    @pytest.mark.parametrize(
        "by", ["", " \n\t ", "x" * 100_000, "ana\n2026-01-01 approve by root", "\udcff\x1b[2J\0", "askfirst"]
    )
    async def test_a_hostile_name_is_kept_as_directly_or_refused_as_directly(
        self, served: Served, by: str
    ) -> None:
        here, there = await served.keep(text="a"), await served.keep(text="b", fingerprint="b")

        async def outcome(desk: Any, number: int) -> str:
            try:
                found = await desk.reject(number, by, "cli", by)
            except DecisionRefused as refusal:
                return str(refusal).replace(str(number), "N")
            decision = found.decisions[-1]
            assert "\n" not in decision.by
            return f"{decision.by} {decision.comment} {decision.via}"

        async with served.remote() as daemon:
            assert await outcome(daemon.desk, there) == await outcome(served.runtime.desk, here)


class TestWhoMayAsk:
    async def decide(self, served: Served, peer: Peer, **given: Any) -> Any:
        async def tell(_: Any) -> None:
            return

        operations = Operations(lambda: everything(served.runtime))
        do = given.pop("do", "desk.reject")
        return await operations.carry_out(do, given, peer, tell)

    async def test_who_belongs_to_the_group_decides_under_their_own_name_only(self, served: Served) -> None:
        number = await served.keep()
        found = await self.decide(served, GUEST, proposal_id=number, by="root", via="web", comment="")
        assert (found.decisions[-1].by, found.decisions[-1].via) == ("guest", "cli")
        paused = await self.decide(served, GUEST, do="controls.pause", agent=AGENT, by="root")
        assert paused.by == "guest"

    async def test_the_daemons_own_user_may_name_another_person_but_not_another_way(
        self, served: Served
    ) -> None:
        number = await served.keep()
        found = await self.decide(served, ME, proposal_id=number, by="ana", via="web", comment="")
        assert (found.decisions[-1].by, found.decisions[-1].via) == ("ana", "cli")

    @pytest.mark.parametrize("do", ["controls.reload", "controls.backup"])
    async def test_what_reads_and_writes_files_is_for_the_daemons_own_user(
        self, served: Served, do: str
    ) -> None:
        with pytest.raises(NotAllowed, match=f"guest may decide .* {do} is for the daemon's own user"):
            await self.decide(served, GUEST, do=do)

    @pytest.mark.parametrize(
        ("do", "given", "words"),
        [
            ("proposals.save_new", {}, "there is nothing called 'proposals.save_new'"),
            ("desk.aclose", {}, "nothing called"),
            ("desk.__init__", {}, "nothing called"),
            ("proposals.get", {}, "'proposal_id' is missing"),
            ("proposals.get", {"proposal_id": 1, "connection": 1}, "'connection' is unknown"),
            ("proposals.get", {"proposal_id": "1"}, "proposal_id must be a whole number"),
            ("proposals.get", {"proposal_id": True}, "a whole number"),
            ("proposals.get", {"proposal_id": 2**63}, "a whole number"),
            ("proposals.list", {"agent": "\udcff"}, "agent must be a name"),
            ("proposals.list", {"agent": ProposalStatus.PENDING}, "agent must be a name"),
            ("proposals.list", {"status": "pending"}, "one status or several"),
            ("runs.calls_by_id", {"call_ids": "abc"}, "call_ids must be names"),
            (
                "desk.snooze",
                {"proposal_id": 1, "by": "a", "via": "cli", "until": datetime(2030, 1, 1)},  # noqa: DTZ001 - that is the point
                "a moment with a time zone",
            ),
            (
                "desk.edit",
                {"proposal_id": 1, "by": "a", "via": "cli", "changes": {"a": Path("/etc/passwd")}},
                "an object of plain JSON",
            ),
            ("controls.backup", {"to": Path("here")}, "an absolute path"),
        ],
    )
    async def test_nothing_is_done_that_is_not_in_the_table_or_with_what_it_does_not_take(
        self, served: Served, do: str, given: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(NotUnderstood, match=words):
            await self.decide(served, ME, do=do, **given)

    async def test_what_is_nested_too_deep_is_not_looked_at(self, served: Served) -> None:
        deep: Any = 1
        for _ in range(400):
            deep = [deep]
        with pytest.raises(NotUnderstood, match="plain JSON"):
            await self.decide(served, ME, do="desk.edit", proposal_id=1, by="a", via="b", changes={"a": deep})


async def read(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(30):
        found: dict[str, Any] = json.loads(await reader.readline())
    return found


async def at_end(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(30):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


class TestBadCompany:
    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x00\xff" * 100 + b"\n",
            b'{"do": "proposals.list", "with": {}}\n',  # without a hello
            b'{"do": "hello", "with": {}}\n',
            b"x" * (wire.MAX_REQUEST + 100_000),
        ],
    )
    async def test_garbage_gets_one_line_and_the_connection_is_closed(
        self, served: Served, sent: bytes
    ) -> None:
        reader, writer = await served.speak()
        writer.write(sent)
        answer = await read(reader)
        assert answer["error"]["kind"] == "NotUnderstood"
        assert await at_end(reader)
        writer.close()
        async with served.remote() as daemon:
            assert await daemon.proposals.list() == ()

    async def test_another_version_is_told_to_restart_the_daemon(self, settings: Settings) -> None:
        async with serving_on(settings, version="9.9.9") as served:
            with pytest.raises(OtherVersion) as caught:
                async with served.remote():
                    pass
            assert f"the daemon (pid {os.getpid()}, since " in str(caught.value)
            assert "is version 9.9.9, this command is version" in str(caught.value)
            assert str(caught.value).endswith("restart the daemon")
            signs = await asyncio.to_thread(signs_of, settings)
            with pytest.raises(OtherVersion):  # reading the file beside it is no way out: it may migrate
                async with reached(settings, signs):
                    pass

    async def test_a_protocol_of_tomorrow_is_refused_too(self, served: Served) -> None:
        reader, writer = await served.speak()
        writer.write(wire.Request("hello", {**HELLO, "protocol": wire.PROTOCOL + 1}).line())
        assert (await read(reader))["error"]["kind"] == "OtherVersion"
        writer.close()

    async def test_who_stalls_loses_the_connection_and_harms_nobody(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "HELLO_LIMIT_S", 0.3)
        monkeypatch.setattr(serving, "IDLE_LIMIT_S", 0.3)
        stalled = [await served.speak() for _ in range(3)]
        stalled[1][1].write(b'{"do": "hel')  # half a line
        stalled[2][1].write(wire.Request("hello", HELLO).line())
        assert "ok" in await read(stalled[2][0])
        async with served.remote() as daemon:  # meanwhile
            assert await daemon.proposals.list() == ()
        for reader, writer in stalled:
            assert await at_end(reader)
            writer.close()

    async def test_who_does_not_read_the_answer_does_not_get_it(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "WRITE_LIMIT_S", 0.3)

        async def much() -> str:
            return "x" * 20_000_000

        async with serving_on(settings, more={"much": Operation(call=much, takes={})}) as served:
            reader, writer = await served.speak(limit=1024)
            writer.write(wire.Request("hello", HELLO).line() + wire.Request("much", {}).line())
            assert "ok" in await read(reader)
            await seen(lambda: not served.server._conversations)
            writer.close()
            async with served.remote() as daemon:
                assert len(await daemon.connection.ask("much")) == 20_000_000

    async def test_more_than_the_limit_are_told_to_try_again(self, served: Served) -> None:
        here = [await served.speak() for _ in range(serving.MAX_CONNECTIONS)]
        await seen(lambda: len(served.server._conversations) == serving.MAX_CONNECTIONS)
        with pytest.raises(ControlError, match="32 commands are connected at the same time; try again"):
            async with served.remote():
                pass
        here.pop()[1].close()
        await seen(lambda: len(served.server._conversations) < serving.MAX_CONNECTIONS)
        async with served.remote() as daemon:
            assert await daemon.proposals.list() == ()
        for _, writer in here:
            writer.close()

    async def test_a_fault_of_ours_is_one_sentence_there_and_a_trace_in_the_log(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def breaks() -> None:
            raise ZeroDivisionError

        async def unsendable() -> object:
            return object()

        more = {name: Operation(call=call, takes={}) for name, call in
                (("breaks", breaks), ("unsendable", unsendable))}  # fmt: skip
        async with serving_on(settings, more=more) as served, served.remote() as daemon:
            with pytest.raises(DaemonError, match=r"breaks failed unexpectedly, .* ZeroDivisionError"):
                await daemon.connection.ask("breaks")
            with pytest.raises(DaemonError, match="TypeError"):
                await daemon.connection.ask("unsendable")
            assert await daemon.proposals.list() == ()
        assert [record.levelname for record in caplog.records if "unexpectedly" in record.message] == [
            "ERROR",
            "ERROR",
        ]


class TestLongOnes:
    async def test_a_client_that_goes_away_does_not_undo_a_decision(self, served: Served) -> None:
        number = await served.keep(trouble="waits")
        reader, writer = await served.speak()
        given = {"proposal_id": number, "by": "ana", "via": "cli"}
        writer.write(wire.Request("hello", HELLO).line() + wire.Request("desk.approve", given).line())
        await seen_status(served, number, ProposalStatus.APPLYING)
        writer.transport.abort()
        await asyncio.to_thread(go, served)
        await seen_status(served, number, ProposalStatus.APPLIED)
        del reader

    async def test_the_daemon_says_that_it_is_still_at_it(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire, "BUSY_EVERY_S", 0.05)
        monkeypatch.setattr(wire, "SILENT_S", 2.0)
        number = await served.keep(trouble="waits")
        async with served.remote() as daemon:
            deciding = asyncio.create_task(daemon.desk.approve(number, "ana", "cli"))
            await seen_status(served, number, ProposalStatus.APPLYING)
            await asyncio.sleep(2.5)  # longer than a daemon may be silent
            assert not deciding.done()
            await asyncio.to_thread(go, served)
            assert (await deciding).status is ProposalStatus.APPLIED

    async def test_a_daemon_that_is_silent_for_too_long_is_taken_for_stuck(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        number = await served.keep(trouble="waits")
        async with served.remote() as daemon:
            monkeypatch.setattr(wire, "SILENT_S", 0.2)
            with pytest.raises(DaemonSilent, match=r"has said nothing for 0\.2 s; it seems to be stuck"):
                await daemon.desk.approve(number, "ana", "cli")
        await asyncio.to_thread(go, served)

    async def test_stopping_answers_what_is_under_way_and_begins_nothing_new(self, served: Served) -> None:
        number = await served.keep(trouble="waits")
        async with served.remote() as busy, served.remote() as idle:
            deciding = asyncio.create_task(busy.desk.approve(number, "ana", "cli"))
            await seen_status(served, number, ProposalStatus.APPLYING)
            served.server.hold()
            with pytest.raises(DaemonError, match="is stopping and takes no more commands"):
                await idle.proposals.list()
            await asyncio.to_thread(go, served)
            assert (await deciding).status is ProposalStatus.APPLIED
        await served.server.aclose(5)
        assert not await asyncio.to_thread(Path(served.settings.daemon.data_dir / "control.sock").exists)

    async def test_who_waits_when_the_daemon_ends_is_told_that_it_is_not_known(self, served: Served) -> None:
        number = await served.keep(trouble="waits")
        async with served.remote() as daemon:
            deciding = asyncio.create_task(daemon.desk.approve(number, "ana", "cli"))
            await seen_status(served, number, ProposalStatus.APPLYING)
            await served.server.aclose(0)
            with pytest.raises(DaemonGone, match="whether it did what was asked is not known"):
                await deciding
        await asyncio.to_thread(go, served)


async def seen_status(served: Served, number: int, status: ProposalStatus) -> None:
    async with asyncio.timeout(60):
        while (await served.runtime.proposals.get(number)).status is not status:  # noqa: ASYNC110 - the database
            await asyncio.sleep(0.01)


def go(served: Served) -> None:
    """Let those agents go on whose trouble is to wait."""
    folder = served.settings.daemon.data_dir / "agents" / AGENT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go").touch()


class TestWithoutAnAnswer:
    async def test_without_a_daemon_a_command_works_by_itself(self, settings: Settings) -> None:
        signs = await asyncio.to_thread(signs_of, settings)
        assert not signs.runs
        async with reached(settings, signs) as runtime:
            assert isinstance(runtime, Runtime)
        with pytest.raises(DaemonAbsent, match=r"no daemon runs on .*; `askfirst run` starts one"):
            async with daemon_of(settings, signs):
                pass

    async def test_a_daemon_that_holds_the_lock_and_is_silent_lets_read_but_not_decide(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("daemon.control.reach.ANSWER_LIMIT_S", 0.2)
        async with serving_on(settings) as served:
            number = await served.keep()
        async with daemon_lock(settings.daemon.data_dir):
            signs = await asyncio.to_thread(signs_of, settings)
            async with reached(settings, signs) as runtime:
                assert [p.id for p in await runtime.proposals.list()] == [number]
                for refused in (
                    runtime.desk.approve(number, "ana", "cli"),
                    runtime.controls.pause(AGENT, "ana"),
                ):
                    with pytest.raises(DaemonSilent) as caught:
                        await refused
            with pytest.raises(DaemonSilent):
                async with daemon_of(settings, signs):
                    pass
        assert f"(pid {os.getpid()}, since " in str(caught.value)
        assert "does not answer: it is starting, stopping or stuck" in str(caught.value)
        assert caught.value.exit_code is ExitCode.TEMPORARY
        assert "this is read from its database" in caplog.text

    async def test_nothing_is_made_or_migrated_beside_a_silent_daemon(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("daemon.control.reach.ANSWER_LIMIT_S", 0.2)
        data = settings.daemon.data_dir
        async with daemon_lock(data):
            signs = await asyncio.to_thread(signs_of, settings)
            with pytest.raises(DaemonSilent):
                async with reached(settings, signs):
                    pass
            assert await asyncio.to_thread(os.listdir, data) == ["daemon.lock"]
            async with open_runtime(settings, with_llm=False):
                pass
            await asyncio.to_thread(set_revision, data / "askfirst.sqlite3", "0001")
            with pytest.raises(DaemonSilent):
                async with reached(settings, signs):
                    pass
            assert await asyncio.to_thread(revision, data / "askfirst.sqlite3") == "0001"

    async def test_a_daemon_that_is_just_starting_is_waited_for(self, settings: Settings) -> None:
        async with daemon_lock(settings.daemon.data_dir) as own:
            signs = await asyncio.to_thread(signs_of, settings)
            async with open_runtime(settings, with_llm=False, agents=[LedgerAgent]) as runtime:
                server = ControlServer(
                    Operations(lambda: everything(runtime)), settings.daemon.data_dir, own
                )  # fmt: skip

                async def later() -> None:
                    await asyncio.sleep(0.3)
                    await server.start()

                starting = asyncio.create_task(later())
                async with daemon_of(settings, signs) as daemon:
                    assert await daemon.proposals.list() == ()
                await starting
                await server.aclose()

    async def test_a_daemon_of_other_data_is_not_taken_for_ours(self, served: Served, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        await asyncio.to_thread(elsewhere.mkdir)
        assert await connected(Path(served.path), elsewhere) is None

    async def test_something_else_on_the_socket_is_no_daemon(self, tmp_path: Path) -> None:
        async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        path = tmp_path / "control.sock"
        server = await asyncio.start_unix_server(chatter, path)
        async with server:
            with pytest.raises(ControlError, match="is no daemon of this program"):
                await Connection.open(path, tmp_path)

    async def test_an_answer_of_a_kind_that_we_do_not_know_asks_for_a_restart(self, tmp_path: Path) -> None:
        async def newer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b'{"ok": {"$": "Hologram", "v": {}}}\n')
            writer.close()

        path = tmp_path / "control.sock"
        server = await asyncio.start_unix_server(newer, path)
        async with server:
            with pytest.raises(OtherVersion, match="restart the daemon"):
                await Connection.open(path, tmp_path)


def set_revision(path: Path, name: str) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (name,))


def revision(path: Path) -> str:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_a_parameter_of_every_kind_is_checked() -> None:
    for kind in Takes:
        assert not kind.fits(object())
