"""Engine processes, with small Python programs in the place of an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm.backends.child import EngineProcess, Launch, engine_environment
from llm.backends.host import EngineHost
from llm.errors import BadRequest, ConfigurationError, ConnectionFailed, LLMError, ModelNotFound, ServerError
from tests.support.engines import becomes_true, is_gone

HEAD = """
import json, os, sys, time

def say(**message):
    print(json.dumps(message), flush=True)

settings = json.loads(sys.stdin.readline())
"""

ECHO = """
say(ready={"pid": os.getpid()})
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" in request:
        with open(settings["log"], "a") as log:
            log.write(f"cancelled {request['cancel']}\\n")
    elif request["do"] == "echo":
        say(id=request["id"], said=request["text"])
    elif request["do"] == "count":
        for number in range(request["to"]):
            say(id=request["id"], text=f"{number} ")
        say(id=request["id"], thinking="hm")
        if request.get("end", True):
            say(id=request["id"], done=True, finish="stop")
    elif request["do"] == "refuse":
        say(id=request["id"], error={"code": "bad_request", "message": "too long; shorten it"})
    elif request["do"] == "fail":
        say(id=request["id"], error={"code": "something new", "message": "it broke"})
    elif request["do"] == "die":
        print(f"fatal: no memory for {settings['key']}", file=sys.stderr, flush=True)
        os.abort()
    elif request["do"] == "garble":
        print("this is no JSON", flush=True)
    elif request["do"] == "flood":
        print("x" * 10_000_000, flush=True)
"""

KEY = "s3cret-key-of-the-engine"

Make = Callable[..., EngineHost]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes hosts of an engine written by the test, and ends them."""
    hosts: list[EngineHost] = []

    def make(body: str = ECHO, *, idle_seconds: float | None = None, **launch: Any) -> EngineHost:
        script = tmp_path / f"engine{len(hosts)}.py"
        script.write_text(HEAD + body, encoding="utf-8")
        settings = {"key": KEY, "log": str(tmp_path / "log")}

        def prepare() -> Launch:
            return Launch(settings=settings, environ=engine_environment(), secrets=(KEY,), **launch)

        hosts.append(EngineHost("toy", script, prepare, idle_seconds=idle_seconds))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.aclose()


async def failure(host: EngineHost, **payload: Any) -> LLMError:
    """The error of one call, which must fail."""
    with pytest.raises(LLMError) as caught:
        await (await host.running()).call(payload)
    return caught.value


async def pid_of(host: EngineHost) -> int:
    """The process of a host that is just starting it."""
    async with asyncio.timeout(20):
        while host.current is None or host.current.pid is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    return host.current.pid


async def test_nothing_runs_before_the_first_use(make: Make) -> None:
    host = make()
    assert host.current is None
    process = await host.running()
    assert psutil.pid_exists(process.pid or 0)


async def test_a_request_is_answered_and_several_at_once_are_told_apart(make: Make) -> None:
    process = await make().running()
    texts = [f"text {n}: ¡año! 東京 \n" for n in range(20)]
    answers = await asyncio.gather(*(process.call({"do": "echo", "text": text}) for text in texts))
    assert [answer["said"] for answer in answers] == texts


async def test_callers_who_come_together_share_one_start(make: Make) -> None:
    host = make()
    processes = await asyncio.gather(*(host.running() for _ in range(5)))
    assert len({process.pid for process in processes}) == 1


async def test_a_start_outlives_the_caller_who_asked_for_it(make: Make, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    host = make(f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\n{ECHO}")
    first = asyncio.create_task(host.running())
    begun = await pid_of(host)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gate.touch()
    assert (await host.running()).pid == begun


async def test_one_caller_at_a_time_has_the_turn(make: Make) -> None:
    host = make()
    inside: list[int] = []

    async def visit(number: int) -> None:
        async with host.turn() as process:
            inside.append(number)
            await process.call({"do": "echo", "text": ""})
            assert inside[-1] == number

    await asyncio.gather(*(visit(number) for number in range(5)))
    assert inside == [0, 1, 2, 3, 4]


async def test_what_the_child_refuses_is_raised_as_our_error(make: Make) -> None:
    host = make()
    refused = await failure(host, do="refuse")
    assert type(refused) is BadRequest
    assert str(refused) == "too long; shorten it"
    assert type(await failure(host, do="fail")) is ServerError


async def test_a_request_that_is_no_json_is_refused_before_it_is_sent(make: Make) -> None:
    host = make()
    assert type(await failure(host, do="echo", text=object())) is BadRequest
    assert (await (await host.running()).call({"do": "echo", "text": "still there"}))["said"] == "still there"


async def test_a_call_in_flight_fails_at_once_when_the_child_is_killed_and_the_next_starts_a_new_one(
    make: Make,
) -> None:
    host = make()
    first = await host.running()
    call = asyncio.create_task(first.call({"do": "nothing"}))
    await asyncio.sleep(0)
    await first.call({"do": "echo", "text": ""})  # so the one before has arrived
    psutil.Process(first.pid).kill()
    with pytest.raises(ServerError, match=r"toy engine process was killed by SIGKILL; the next call starts"):
        await asyncio.wait_for(call, 10)
    assert first.ended
    second = await host.running()
    assert second.pid != first.pid
    assert (await second.call({"do": "echo", "text": "back"}))["said"] == "back"


async def test_the_last_words_of_a_crashed_engine_are_told_without_its_key(make: Make) -> None:
    fault = await failure(make(), do="die")
    assert type(fault) is ServerError
    assert "killed by SIGABRT" in str(fault)
    assert "fatal: no memory for" in str(fault)
    assert KEY not in str(fault)


async def test_a_call_to_a_process_that_is_gone_fails_instead_of_waiting(make: Make) -> None:
    host = make()
    process = await host.running()
    await host.aclose()
    with pytest.raises(ServerError):
        await asyncio.wait_for(process.call({"do": "echo", "text": ""}), 10)


@pytest.mark.parametrize("noise", ["garble", "flood"])
async def test_an_engine_that_breaks_the_protocol_is_ended(make: Make, noise: str) -> None:
    host = make()
    process = await host.running()
    fault = await failure(host, do=noise)
    assert type(fault) is ServerError
    assert "sent what cannot be read" in str(fault)
    assert is_gone(process.pid or 0)


async def test_what_hinders_the_start_is_raised_as_the_child_says_it(make: Make) -> None:
    said = {"code": "model_not_found", "message": "there is no such model; get it"}
    host = make(f"say(error={said!r})")
    for _ in range(2):  # the second time it is tried again and fails again
        with pytest.raises(ModelNotFound, match=r"^there is no such model; get it$"):
            await host.running()


async def test_a_reason_on_stderr_is_part_of_the_message(make: Make) -> None:
    said = {"code": "model_not_found", "message": "damaged", "stderr": True}
    host = make(f"print('tensor out of bounds', file=sys.stderr)\nsay(error={said!r})")
    with pytest.raises(ModelNotFound, match=r"^damaged\. Its last words: tensor out of bounds$"):
        await host.running()


async def test_an_engine_that_dies_while_it_starts_is_a_server_error(make: Make) -> None:
    host = make("sys.exit(3)")
    with pytest.raises(ServerError, match="ended with exit status 3"):
        await host.running()


async def test_what_is_missing_before_the_start_starts_nothing(tmp_path: Path) -> None:
    def prepare() -> Launch:
        raise ConnectionFailed("not installed")

    host = EngineHost("toy", tmp_path / "none.py", prepare)
    with pytest.raises(ConnectionFailed, match="not installed"):
        await host.running()
    assert host.current is None


async def test_a_caller_who_stops_waiting_cancels_the_request_in_the_child(
    make: Make, tmp_path: Path
) -> None:
    process = await make().running()
    call = asyncio.create_task(process.call({"do": "nothing"}))
    await asyncio.sleep(0)
    await process.call({"do": "echo", "text": ""})
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await process.call({"do": "echo", "text": ""})  # the child reads in order
    assert (tmp_path / "log").read_text() == "cancelled 1\n"


async def collected(process: EngineProcess, **payload: Any) -> list[dict[str, Any]]:
    """All messages of one stream."""
    return [message async for message in process.stream(payload)]


def texts_of(messages: list[dict[str, Any]]) -> str:
    return "".join(message.get("text", "") for message in messages)


async def test_a_stream_gives_its_messages_in_order_and_several_at_once_are_told_apart(make: Make) -> None:
    process = await make().running()
    streams = await asyncio.gather(*(collected(process, do="count", to=size) for size in (3, 50, 0)))
    for size, messages in zip((3, 50, 0), streams, strict=True):
        assert texts_of(messages) == "".join(f"{number} " for number in range(size))
        assert [list(message)[1] for message in messages[-2:]] == ["thinking", "done"]


async def test_what_a_slow_reader_leaves_waiting_is_put_together(make: Make) -> None:
    process = await make().running()
    stream = process.stream({"do": "count", "to": 5000})
    first = await anext(stream)
    await process.call({"do": "echo", "text": ""})  # all of the stream has come by now
    rest = [message async for message in stream]
    assert len(rest) <= 3
    assert texts_of([first, *rest]) == "".join(f"{number} " for number in range(5000))


async def test_closing_a_stream_early_cancels_it_in_the_child_and_its_end_does_not(
    make: Make, tmp_path: Path
) -> None:
    process = await make().running()
    await collected(process, do="count", to=2)
    stream = process.stream({"do": "count", "to": 2, "end": False})
    await anext(stream)
    await stream.aclose()
    await process.call({"do": "echo", "text": ""})
    assert (tmp_path / "log").read_text() == "cancelled 2\n"


async def test_a_stream_that_the_child_refuses_or_dies_in_raises_after_what_had_come(make: Make) -> None:
    host = make()
    process = await host.running()
    with pytest.raises(BadRequest, match="too long"):
        await collected(process, do="refuse")
    stream = process.stream({"do": "count", "to": 2, "end": False})
    came = [await anext(stream)]
    await process.call({"do": "echo", "text": ""})  # so the rest has come too
    psutil.Process(process.pid).kill()

    async def read_on() -> None:
        async for message in stream:
            came.append(message)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ServerError, match="killed by SIGKILL"):
        await read_on()
    assert texts_of(came) == "0 1 "
    with pytest.raises(ServerError, match="killed by SIGKILL"):
        await collected(process, do="count", to=1)


async def test_an_engine_that_nobody_uses_for_a_while_is_ended_and_the_next_call_starts_another(
    make: Make,
) -> None:
    host = make(idle_seconds=0.1)
    first = await host.running()
    await first.call({"do": "echo", "text": ""})
    assert await asyncio.to_thread(becomes_true, lambda: is_gone(first.pid or 0))
    assert host.current is None
    second = await host.running()
    assert second.pid != first.pid
    assert (await second.call({"do": "echo", "text": "back"}))["said"] == "back"


async def test_an_engine_that_is_at_work_is_not_idle_however_long_it_takes(make: Make) -> None:
    host = make(idle_seconds=0.05)
    process = await host.running()
    working = asyncio.create_task(process.call({"do": "nothing"}))
    stream = process.stream({"do": "count", "to": 1, "end": False})
    await anext(stream)
    for _ in range(20):
        await asyncio.sleep(0.02)
        assert host.current is process
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert host.current is process  # the stream is still open
    await stream.aclose()
    assert await asyncio.to_thread(becomes_true, lambda: is_gone(process.pid or 0))


async def test_closing_a_host_waits_for_an_engine_that_is_just_leaving(make: Make) -> None:
    host = make(idle_seconds=0.05, body=ECHO + "time.sleep(0.3)")
    process = await host.running()
    async with asyncio.timeout(20):
        while host.current is not None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    await host.aclose()
    assert is_gone(process.pid or 0)


async def test_closing_ends_the_process(make: Make) -> None:
    host = make()
    process = await host.running()
    await host.aclose()
    assert is_gone(process.pid or 0)
    assert not [child for child in psutil.Process().children() if child.pid == process.pid]


async def test_an_engine_that_will_not_end_is_killed(make: Make) -> None:
    stubborn = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{ECHO}\ntime.sleep(3600)"
    host = make(stubborn, grace=0.2)
    process = await host.running()
    await asyncio.wait_for(host.aclose(), 20)
    assert is_gone(process.pid or 0)


async def test_closing_during_the_start_leaves_no_process(make: Make) -> None:
    host = make("time.sleep(3600)", grace=0.2)
    waiting = asyncio.create_task(host.running())
    pid = await pid_of(host)
    await host.aclose()
    with pytest.raises(ServerError):
        await waiting
    assert is_gone(pid)


async def test_secrets_are_in_no_argument_and_no_variable_of_the_child(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_KEY", "key-of-a-remote-service")
    monkeypatch.setenv("HF_TOKEN", "token-of-the-hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
    process = psutil.Process((await make().running()).pid)
    shown = repr([process.cmdline(), process.environ()])
    for secret in (KEY, "key-of-a-remote-service", "token-of-the-hub", "other-secret"):
        assert secret not in shown
    assert process.environ()["PATH"]


def test_variables_of_the_hub_are_passed_on_but_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("HF_TOKEN", "token-of-the-hub")
    assert "HF_HOME" not in engine_environment()
    assert engine_environment("HF_")["HF_HOME"] == "/somewhere"
    assert "HF_TOKEN" not in engine_environment("HF_")


async def test_the_child_is_out_of_reach_of_the_terminals_interrupt(make: Make) -> None:
    process = await make().running()
    assert process.pid is not None
    assert os.getsid(process.pid) == process.pid != os.getsid(0)


PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from llm.backends.child import Launch, engine_environment
from llm.backends.host import EngineHost

host = EngineHost("toy", Path(sys.argv[1]), lambda: Launch(settings={}, environ=engine_environment()))
"""


def start_program(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A program of its own that uses a host, so that it can be killed or misuse event loops."""
    engine = tmp_path / "engine.py"
    engine.write_text(HEAD + ECHO, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + body, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(program), str(engine)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    body = """
async def main():
    print((await host.running()).pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
    with start_program(tmp_path, body) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert becomes_true(lambda: is_gone(pid))


def test_a_second_event_loop_gets_a_process_of_its_own_and_the_first_one_is_gone(tmp_path: Path) -> None:
    body = """
async def use():
    process = await host.running()
    await process.call({"do": "echo", "text": "hello"})
    return process.pid

for _ in range(3):
    print(asyncio.run(use()))
"""
    with start_program(tmp_path, body) as program:
        out, errors = program.communicate(timeout=60)
    assert errors == ""
    pids = [int(line) for line in out.split()]
    assert len(set(pids)) == 3
    assert all(is_gone(pid) for pid in pids)


def test_a_loop_that_was_closed_without_ending_its_tasks_does_not_keep_the_process(tmp_path: Path) -> None:
    body = """
async def use():
    process = await host.running()
    await process.call({"do": "echo", "text": "hello"})
    return process.pid

first = asyncio.new_event_loop()
print(first.run_until_complete(use()), flush=True)
first.close()
print(asyncio.run(use()), flush=True)
"""
    with start_program(tmp_path, body) as program:
        out, _ = program.communicate(timeout=60)  # asyncio itself complains of such a loop
    pids = [int(line) for line in out.split()]
    assert len(set(pids)) == 2
    assert becomes_true(lambda: all(is_gone(pid) for pid in pids))


async def test_two_event_loops_at_once_are_refused_clearly(make: Make) -> None:
    host = make()
    await host.running()

    def elsewhere() -> None:
        asyncio.run(host.running())

    with pytest.raises(ConfigurationError, match="one client for each loop"):
        await asyncio.to_thread(elsewhere)
