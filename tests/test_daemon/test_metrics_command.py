"""`askfirst metrics list`: every metric of the catalogue, and the page that is made from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.commands.metrics import document
from daemon.errors import ExitCode
from daemon.observability.catalogue import GROUPS, LABELS, METRICS
from tests.support.program import Program
from tests.support.terminal import at_a_terminal

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_it_has_every_metric_with_type_unit_labels_and_meaning_under_its_group(program: Program) -> None:
    done = program.call("metrics", "list")
    assert done.code == ExitCode.OK, done
    lines = done.out.splitlines()
    for group, metrics in GROUPS.items():
        at = lines.index(group)
        assert lines[at + 1].split() == ["name", "type", "unit", "labels", "meaning"]
        rows = lines[at + 2 : at + 2 + len(metrics)]
        for metric, row in zip(metrics, rows, strict=True):
            cells = (metric.name, metric.kind, metric.unit, ", ".join(metric.labels), metric.help)
            assert re.split(r"  +", row) == [cell for cell in cells if cell]
    for label in LABELS:
        assert re.search(rf"^  {label} +\S", done.out, re.MULTILINE), label


def test_in_json_it_has_the_buckets_and_the_meaning_of_labels_too(program: Program) -> None:
    data = program.call("metrics", "list", "--json").data
    assert {each["name"]: tuple(each["buckets"]) for each in data["metrics"]} == {
        name: metric.buckets for name, metric in METRICS.items()
    }
    assert data["labels"] == dict(LABELS)
    other = {each["name"]: each["other"] for each in data["metrics"]}
    assert other["askfirst_agent_last_success_timestamp_seconds"] == "smallest"
    assert other["askfirst_storage_full"] is None
    assert {label for each in data["metrics"] for label in each["labels"]} <= set(data["labels"])


def test_at_a_terminal_nothing_is_left_out(program: Program) -> None:
    command, environment = program.command("metrics", "list"), program.whole_environment({})
    code, text = at_a_terminal(command, environment, program.folder)
    assert code == ExitCode.OK
    missing = [each for each in METRICS.values() if each.name not in text or each.help not in text]
    assert missing == []


def test_it_needs_no_configuration_and_loads_none_of_what_the_daemon_needs(program: Program) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "daemon", "metrics", "list"],
        cwd=program.folder,
        env=program.whole_environment({"ASKFIRST_CONFIG": "missing.toml"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert "askfirst_agent_runs_total" in done.stdout
    imported = {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE)}
    assert "agents" in imported
    assert not imported & {"prometheus_client", "psutil", "sqlalchemy", "pydantic", "structlog", "asyncio"}


def test_the_page_is_the_one_that_the_program_prints(program: Program) -> None:
    printed = program.call("metrics", "list", "--markdown").out
    assert printed == document()
    assert printed == PAGE.read_text(encoding="utf-8"), (
        "docs/metrics.md is old: askfirst metrics list --markdown > docs/metrics.md"
    )
    for metric in METRICS.values():
        assert f"| `{metric.name}` | {metric.kind} |" in printed
