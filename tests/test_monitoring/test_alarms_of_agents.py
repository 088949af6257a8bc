"""Alarms about agents, proposals and models, each made to come by causing it, and to go by mending it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.alarm_stage import Daemon, Stage, daemon, proposals, stage
from tests.support.alarms import alarms
from tests.support.scripted_model import ScriptedModel
from tests.support.tally import Note, note_watched
from tests.support.waiting import seen_now

pytestmark = [pytest.mark.monitoring, pytest.mark.process]

CONFIGURATION = """
[daemon]
data_dir = "data"
log_format = "json"
backoff = ["1s"]
quarantine_after = 3
stall_after = "400ms"
max_concurrent_runs = 4

[web]
port = {port}

[llm]
backend = "remote"
retries = 0
max_concurrency = 4

[llm.backends.frail]
model = "small"
api_base = "FRAIL"

[llm.backends.stern]
model = "big"
api_base = "STERN"

[llm.backends.spare]
model = "big"
api_base = "STERN"
budget = "100 tokens/day"

[llm.backends.dear]
model = "big"
api_base = "STERN"
budget = "1 tokens/day"

[llm.routes]
default = ["frail"]

[llm.routes.tasks]
forbidden = ["stern"]
polite = ["stern"]
spare = ["spare"]
dear = ["dear"]

[proposals]
expires_after = "40s"

"""

# Without a schedule of its own: a run by hand alone, which is how often its budgets are used.
BY_HAND = 'cron = "0 0 1 1 *"'

AGENTS = {
    "rester": "rest",
    "failer": "fail",
    "asker": "ask",
    "blocker": "block",
    "spender": "ask-for spare spare dear forbidden forbidden forbidden forbidden",
    "proposer": "propose",
}
HURRIED = {"rester", "failer", "asker", "blocker"}

# What each alarm is about here. Those that are only good to know are told once, without their end.
CAUSED = {
    "AskfirstAgentStale": {"agent": "rester"},
    "AskfirstAgentQuarantined": {"agent": "failer"},
    "AskfirstRunsFailing": {"agent": "asker"},
    "AskfirstProposalsWaiting": {},
    "AskfirstApplyFailing": {"agent": "proposer"},
    "AskfirstBudgetNearlyUsed": {"budget": "100 tokens/day"},
    "AskfirstBudgetUsedUp": {"budget": "1 tokens/day"},
    "AskfirstModelUnreachable": {"backend": "frail"},
    "AskfirstModelErrors": {"backend": "stern"},
    "AskfirstLoopStalls": {},
}


@dataclass(frozen=True)
class Scene:
    """The stage, the program on it, and the model server that goes down."""

    stage: Stage
    daemon: Daemon
    frail: ScriptedModel


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything that can go wrong has gone wrong."""
    folder = tmp_path_factory.mktemp("agents")
    with ScriptedModel() as frail, ScriptedModel() as stern:
        tables = [
            f'[agents.{name}]\nisolation = "none"\n{"" if name in HURRIED else BY_HAND}\n' for name in AGENTS
        ]
        text = CONFIGURATION.replace("FRAIL", frail.url("small")).replace("STERN", stern.url("big"))
        found = daemon(folder, text + "\n".join(tables), AGENTS)
        with stage(folder, found.address) as watching:
            found.start()
            try:
                seen_now(lambda: watching.prometheus.value("askfirst_build_info") == 1)
                _cause(found, frail)
                yield Scene(watching, found, frail)
            finally:
                found.kill()


def _cause(found: Daemon, frail: ScriptedModel) -> None:
    frail.stop()
    found.command("agents", "run", "proposer")
    first, *_ = proposals(found)
    found.command("proposals", "approve", str(first), code=1)
    found.command("agents", "pause", "rester")
    found.command("agents", "run", "spender")


@pytest.mark.parametrize("name", CAUSED)
def test_an_alarm_is_told(name: str, scene: Scene, record_property: Note) -> None:
    scene.stage.arrives(name, CAUSED[name])
    note_watched(record_property, alerts=1)


@pytest.fixture(scope="module")
def mended(scene: Scene) -> Scene:
    """After all of them came, everything was mended."""
    for name, labels in CAUSED.items():
        scene.stage.arrives(name, labels)
    scene.frail.start()
    for agent in AGENTS:
        scene.daemon.order(agent, "rest")
    scene.daemon.order("asker", "ask")
    scene.daemon.order("spender", "ask-for " + "polite " * 5)
    scene.daemon.command("agents", "run", "spender")
    scene.daemon.command("agents", "resume", "rester")
    scene.daemon.command("agents", "resume", "failer")
    for number in proposals(scene.daemon):
        scene.daemon.command("proposals", "reject", str(number))
    text = scene.daemon.configuration.read_text()
    scene.daemon.configuration.write_text(text.replace('"100 tokens/day"', '"1000 tokens/day"'))
    scene.daemon.reload('"1 tokens/day"', '"1001 tokens/day"')
    return scene


@pytest.mark.parametrize("name", CAUSED)
def test_an_alarm_ends_when_its_cause_is_mended(name: str, mended: Scene) -> None:
    mended.stage.ends(name, CAUSED[name], told=alarms()[name].severity != "info")
