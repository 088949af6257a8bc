"""The real program tells a real OTLP receiver what it does: the tree of a run, and of what people decided."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.collector import Collector, Received, collecting
from tests.support.control import daemon_of
from tests.support.loopback import http_message
from tests.support.moody_server import MoodyServer, completion, refusal
from tests.support.program import Program
from tests.support.tally import Note, note_watched
from tests.support.waiting import seen_now

pytestmark = [pytest.mark.monitoring, pytest.mark.process]

KEY = "sk-tracing0123456789abcdef"
HEADER = "collector-secret-98765"
PRIVATE = "Ana's marrow"

AGENT = '''
import asyncio
from pydantic import BaseModel
from agents import BaseAgent
from agents.proposal import Evidence
from llm import LLMError, LLMMessage, run_tools

class Note(BaseModel):
    text: str

class Plot(BaseAgent):
    """Uses a model in every way there is."""

    name = "plot"
    every = "1h"
    payloads = {"note": Note}

    async def analyze(self):
        llm = self.context.llm
        for _ in range(2):
            bed = {"bed": "PRIVATE KEY"}
            await self.use_llm("Which bed?", bed, temperature=0.0, max_tokens=40, task="pick")
        try:
            await self.use_llm("REFUSE this")
        except LLMError:
            pass

        def look(bed: str) -> str:
            """Look."""
            return "It is the PRIVATE"

        await run_tools(llm, [LLMMessage("user", "USE A TOOL")], [look])
        await llm.embed(["one", "two"])
        proposal = self.propose("note", "PRIVATE", explanation="", payload={"text": "x"}, fingerprint="plot",
                                evidence=(Evidence.of("book", "1", "words"),))
        return [proposal]

    async def apply(self, proposal):
        if self.context.llm is not None:
            await self.use_llm("How much?", max_tokens=7)
        return {}

    async def undo(self, proposal):
        return None
'''.replace("PRIVATE", PRIVATE).replace("KEY", KEY)

CONFIGURATION = """
[daemon]
data_dir = "../data"
[web]
enabled = false
[agents.plot]
"""


def reply(body: Any) -> bytes:
    """What the model's server answers by what it is asked."""
    if "input" in body:
        data = [{"index": n, "embedding": [0.6, 0.8]} for n in range(len(body["input"]))]
        vectors = {"model": "m", "data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}
        return http_message(200, json.dumps(vectors).encode())
    last = body["messages"][-1]
    if "REFUSE" in last["content"]:
        return refusal(400, "I will not")
    if "USE A TOOL" in last["content"]:
        call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"bed": "3"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        return http_message(200, json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())
    return completion(f"The {PRIVATE}.", model="m")


@contextmanager
def model_server(*first: bytes) -> Iterator[MoodyServer]:
    """A model's server on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = MoodyServer(*first, then=reply)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(30)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def program_in(folder: Path, model: MoodyServer, collector: Collector, **more: str) -> Program:
    (folder / "config").mkdir()
    (folder / "data" / "plugins").mkdir(parents=True, mode=0o700)
    (folder / "data").chmod(0o700)
    (folder / "config" / "askfirst.toml").write_text(CONFIGURATION)
    (folder / "data" / "plugins" / "plot.py").write_text(AGENT)
    (folder / "config" / "headers").write_text(f"x-key={HEADER}\n")
    environment = {
        "LLM_BACKEND": "remote",
        "LLM_MODEL": "m",
        "LLM_API_BASE": model.url,
        "LLM_API_KEY": KEY,
        "ASKFIRST_TRACES__ENDPOINT": collector.url,
        "ASKFIRST_TRACES__HEADERS_FILE": str(folder / "config" / "headers"),
        **more,
    }
    return Program(folder, environment)


def of_run(collector: Collector, trigger: str) -> tuple[Received, dict[str, list[Received]]]:
    """The span of the run of that trigger, and all that are a part of it by their names, in time's order."""
    runs = collector.named("invoke_agent plot")
    (run,) = [span for span in runs if span.attributes["askfirst.run.trigger"] == trigger]
    parts: dict[str, list[Received]] = {}
    for span in sorted(collector.spans, key=lambda span: span.start):
        if span.trace == run.trace and span is not run and span.id != run.id:
            assert span.parent == run.id, span
            assert run.start <= span.start <= span.end <= run.end, span
            assert span.attributes["askfirst.run.id"] == run.attributes["askfirst.run.id"]
            assert span.attributes["gen_ai.agent.name"] == "plot"
            parts.setdefault(span.name, []).append(span)
    return run, parts


def check_run(run: Received, parts: dict[str, list[Received]], *, retried: bool, cached: bool) -> None:
    """Its tree is what the agent did."""
    assert not run.failed
    assert run.attributes["askfirst.run.calls"] == 3  # those by use_llm
    chats = parts["chat m"]
    errors = [span.attributes.get("error.type", "") for span in chats]
    assert errors == [*(["server"] if retried else []), "", "", "bad_request", "", ""]
    assert [span.failed for span in chats] == [bool(error) for error in errors]
    assert len({span.attributes["askfirst.call.id"] for span in chats}) == len(chats)
    first, hit = chats[1:3] if retried else chats[:2]
    assert first.attributes.get("askfirst.call.attempt") == (2 if retried else None)
    assert first.attributes.get("askfirst.cache.hit") is (True if cached else None)
    assert hit.attributes["askfirst.cache.hit"] is True
    assert [name for name, _ in run.events] == (["retry"] if retried else [])
    assert chats[-2].attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    (tool,), (vectors,) = parts["execute_tool look"], parts["embeddings m"]
    assert chats[-2].end <= tool.end
    assert tool.start <= chats[-1].start
    assert not tool.failed
    assert vectors.attributes["gen_ai.usage.input_tokens"] == 4


def test_a_run_its_calls_and_what_was_decided_are_told_and_nothing_that_was_said(
    tmp_path: Path, record_property: Note
) -> None:
    with collecting() as collector, model_server(refusal(503)) as model:
        program = program_in(tmp_path, model, collector)
        once = program.run("--once", ASKFIRST_AGENTS__PLOT__ISOLATION="none")
        assert once.code == 0, once
        run, parts = of_run(collector, "once")
        check_run(run, parts, retried=True, cached=False)
        answered = parts["chat m"][1]
        assert answered.kind == 3  # CLIENT
        assert {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "remote",
            "gen_ai.request.model": "m",
            "gen_ai.request.temperature": 0.0,
            "gen_ai.request.max_tokens": 40,
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.response.finish_reasons": ["stop"],
            "server.address": "127.0.0.1",
            "askfirst.task": "pick",
        }.items() <= answered.attributes.items()
        assert run.attributes["askfirst.proposal.ids"] == [1]
        assert run.resource["service.instance.id"] == (tmp_path / "data" / "instance").read_text().strip()
        assert parts["execute_tool look"][0].attributes["gen_ai.tool.call.id"] == "c1"

        # The daemon, whose agent is a plugin in a process of its own; the same database, another program.
        with daemon_of(program) as daemon:
            for command in (("--once",), ("proposals", "approve", "1"), ("proposals", "undo", "1")):
                done = daemon.call(*command)
                assert done.code == 0, done
            seen_now(lambda: bool(collector.named("undo plot")))
            assert daemon.stop() == 0
        check_run(*of_run(collector, "manual"), retried=False, cached=True)
        apply, undo = collector.one("apply plot"), collector.one("undo plot")
        for span in (apply, undo):
            assert span.links == [(run.trace, run.id)]  # of the run that made it, in an earlier program
            assert span.trace != run.trace
            assert span.attributes["askfirst.proposal.id"] == 1
            assert not span.failed
        (call,) = [span for span in collector.named("chat m") if span.trace == apply.trace]
        assert call.parent == apply.id
        assert call.attributes["gen_ai.request.max_tokens"] == 7
        assert apply.start <= call.start <= call.end <= apply.end

        note_watched(record_property, spans=len(collector.spans))
        sent = b"".join(collector.bodies)
        assert PRIVATE.encode() not in sent
        assert b"Which bed" not in sent
        assert KEY.encode() not in sent
        assert {headers["x-key"] for headers in collector.headers} == {HEADER}
        assert HEADER not in daemon.log.read_text() + once.err


def test_what_was_said_is_told_on_request_without_secrets_and_a_collector_that_is_gone_harms_nobody(
    tmp_path: Path,
) -> None:
    with model_server() as model:
        with collecting() as collector:
            program = program_in(tmp_path, model, collector, ASKFIRST_TRACES__CONTENT="true")
            once = program.run("--once", ASKFIRST_AGENTS__PLOT__ISOLATION="none")
            assert once.code == 0, once
            chats = collector.named("chat m")
            (asked,) = json.loads(chats[0].attributes["gen_ai.input.messages"])
            assert asked["role"] == "user"
            assert PRIVATE in asked["parts"][0]["content"]
            assert "[redacted]" in asked["parts"][0]["content"]
            (answer,) = json.loads(chats[0].attributes["gen_ai.output.messages"])
            assert answer == {
                "role": "assistant",
                "parts": [{"type": "text", "content": f"The {PRIVATE}."}],
                "finish_reason": "stop",
            }
            (tool,) = collector.named("execute_tool look")
            assert json.loads(tool.attributes["gen_ai.tool.call.arguments"]) == {"bed": "3"}
            assert tool.attributes["gen_ai.tool.call.result"] == f"It is the {PRIVATE}"
            sent = b"".join(collector.bodies)
            assert KEY.encode() not in sent
            assert HEADER.encode() not in sent
        # Nobody listens there any more.
        done = program.run("proposals", "approve", "1")
        assert done.code == 0, done
        assert done.err.count("takes no traces: it cannot be reached") == 1
        assert KEY not in done.err
        assert HEADER not in done.err
