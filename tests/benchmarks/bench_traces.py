"""What traces cost: on the event loop, in their own thread, in memory, and when nothing happens."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from daemon.events import RunBegun, RunFinished
from daemon.observability.redact import Cleaner
from daemon.observability.spans import Span, Spans
from daemon.observability.tracing import Collector, Exporter
from llm import LLMClient, LLMConfig, calling, get_llm_client
from tests.benchmarks.measure import compare, show
from tests.benchmarks.processes import cost_of
from tests.support.collector import collecting
from tests.support.program import ROOT
from tests.support.stores import run_result

pytestmark = pytest.mark.timeout(300)

CALLS = 300
IDLE_S = 21.0

LOADED = """
import time
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
import daemon.observability.spans
from daemon.observability import tracing
from daemon.observability.redact import Cleaner
before, began = rss(), time.process_time()
tracing._Sdk(tracing.Collector(endpoint="http://127.0.0.1:1"), Cleaner(), closing=lambda: False)
print(time.process_time() - began, rss() - before)
"""

OURS = """
import sys, time
from daemon.observability.redact import Cleaner
from daemon.observability.spans import Span
from daemon.observability.tracing import Collector, Exporter
exporter = Exporter(Collector(endpoint="http://127.0.0.1:1"), Cleaner(), gather=0.0)
exporter.put(Span(name="x", trace_id=1, span_id=1, start=1, end=2))
while not exporter.lost:  # nobody listens there; the thread is idle once it has given the span up
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
"""

THEIRS = """
import sys, time
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint="http://127.0.0.1:1/v1/traces")))
with provider.get_tracer("x").start_as_current_span("x"):
    pass
provider.force_flush()
print("ready", flush=True)
sys.stdin.read()
"""


async def test_what_a_call_costs_with_spans_and_without() -> None:
    """Both make the same calls; the spans go nowhere, as they do when the thread has not got to them yet."""
    ended: list[Span] = []
    spans = Spans(ended.append)
    plain = get_llm_client(LLMConfig(backend="mock", enable_cache=False))
    watched = get_llm_client(LLMConfig(backend="mock", enable_cache=False), observers=[spans.observe_call])

    async def ask(client: LLMClient) -> None:
        ended.clear()
        spans.note(RunBegun(agent="pantry", run_id="r1", trigger="once"))
        with calling(agent="pantry", run_id="r1"):
            for _ in range(CALLS):
                await client.generate("Which?")
        spans.note(RunFinished(result=run_result("r1", agent="pantry")))

    rows = await compare({"without": lambda: ask(plain), "with": lambda: ask(watched)}, operations=CALLS)
    show("A call to a backend that answers at once, on the event loop", rows)
    assert len(ended) == CALLS + 1


def test_what_sending_a_span_costs() -> None:
    made = [
        Span(
            name="chat qwen2.5:1.5b",
            trace_id=1,
            span_id=number,
            parent_id=1,
            start=time.time_ns(),
            end=time.time_ns(),
            attributes={f"gen_ai.attribute.{n}": "value" for n in range(20)},
        )
        for number in range(1, 2001)
    ]
    with collecting() as collector:
        exporter = Exporter(Collector(endpoint=collector.url), Cleaner(["secret-secret"]), gather=0.0)
        exporter.put(made[0])
        while exporter._waiting or not collector.bodies:  # so that the import is not counted
            time.sleep(0.01)  # for the thread to come to its turn
        began, put = time.process_time(), 0.0
        for span in made[1:]:
            exporter.put(span)
        put = time.process_time() - began
        assert exporter.close(60)
        all_of_it = time.process_time() - began
    print(
        f"\nSending 2,000 spans of 20 attributes, the receiver in this process included (CPU): "
        f"{all_of_it / 2000 * 1e6:.0f} us a span, {put / 2000 * 1e6:.0f} us of it before the last put"
    )
    assert exporter.lost == 0


def test_what_the_sdk_costs_once_it_is_loaded() -> None:
    command, variables = [sys.executable, "-P", "-c", LOADED], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, megabytes = map(float, done.stdout.split())
    print(f"\nThe SDK, from the first span on: {seconds:.2f} s of CPU in its own thread, {megabytes:.1f} MB")


def test_what_an_idle_exporter_costs() -> None:
    """Each in a process of its own, so that nothing else wakes there."""
    print()
    for name, code in (("ours", OURS), ("the SDK's batch processor", THEIRS)):
        woken = _woken_in(code)
        print(f"  wake-ups in {IDLE_S:g} s after a span that could not be sent, {name}: {woken:.0f}")


def _woken_in(code: str) -> float:
    """How often a process that has tried to send its span, and rests, is woken."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)  # what it does right after the start is not counted
        before = cost_of(process.pid).wake_ups
        time.sleep(IDLE_S)  # the time that is measured
        woken = cost_of(process.pid).wake_ups - before
        process.kill()
    return woken
