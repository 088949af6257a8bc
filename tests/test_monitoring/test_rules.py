"""The rules: promtool finds them good, tries each alarm, and each alarm has a runbook."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from daemon.observability.catalogue import LABELS, METRICS
from tests.support.alarms import (
    CASES,
    FOLDER,
    OWN,
    RULES,
    RUNBOOKS,
    TARGET_LABELS,
    Rule,
    alarms,
    cases,
    headings,
    quickened,
    quickened_receiver,
    rules,
)
from tests.support.program import ROOT
from tests.support.prometheus import tool

pytestmark = pytest.mark.monitoring

ALARMS = alarms()
FORBIDDEN = re.compile(r"\$externalURL|\$__|localhost")


def said(*command: str | Path) -> str:
    """What a program says when it is content; the test fails when it is not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_promtool_and_amtool_find_nothing_wrong_with_the_files() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in said(tool("promtool"), "check", "rules", RULES)
    assert "SUCCESS: 1 rule files found" in said(
        tool("promtool"), "check", "config", FOLDER / "prometheus.example.yml"
    )
    assert "SUCCESS" in said(tool("amtool"), "check-config", FOLDER / "alertmanager.example.yml")


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_every_alarm_reaches_a_receiver(severity: str) -> None:
    route = f"--config.file={FOLDER / 'alertmanager.example.yml'}"
    told = said(tool("amtool"), "config", "routes", "test", route, "alertname=A", f"severity={severity}")
    assert told.strip() == ("askfirst-info" if severity == "info" else "askfirst")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_each_alarm_comes_says_what_it_should_and_goes(path: Path) -> None:
    assert "SUCCESS" in said(tool("promtool"), "test", "rules", path)


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_is_tried_in_full(name: str) -> None:
    own = [case for case in cases() if case["name"].startswith(f"{name}: ")]
    checks = [[bool(check.get("exp_alerts")) for check in _of(name, case["alert_rule_test"])] for case in own]
    assert any(_comes_and_goes(each) for each in checks), f"{name} has no case in which it comes and goes"
    assert any(not any(each) for each in checks), f"{name} has no case that is not enough for it"


def _of(name: str, checks: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    return [check for check in checks if check["alertname"] == name]


def _comes_and_goes(fires: list[bool]) -> bool:
    return True in fires and not fires[0] and not fires[-1]


@pytest.mark.parametrize("rule", ALARMS.values(), ids=list(ALARMS))
def test_an_alarm_tells_a_person_what_is_the_matter_and_what_to_do(rule: Rule) -> None:
    assert rule.name.startswith("Askfirst")
    assert rule.severity in {"critical", "warning", "info"}
    summary, description = rule.annotations["summary"], rule.annotations["description"]
    assert "$labels." in summary, "it does not say which one"
    assert summary[-1] != "."
    assert "askfirst " in description, "it names no command"
    assert not FORBIDDEN.search(summary + description)


@pytest.mark.parametrize("rule", ALARMS.values(), ids=list(ALARMS))
def test_an_alarm_leads_to_its_runbook(rule: Rule) -> None:
    anchor = rule.name.lower()
    assert rule.annotations["runbook_url"] == f"{RUNBOOKS}#{anchor}"
    section = headings(ROOT / RUNBOOKS)[anchor]
    assert section.strip().startswith(f"*{rule.severity}"), "it gives another severity than the rule"
    for word in ("    $ ", "\nDo: ", "Leave it be: "):
        assert word in section, f"{anchor} lacks {word.strip()!r}"


def test_a_runbook_belongs_to_an_alarm() -> None:
    sections = {anchor for anchor in headings(ROOT / RUNBOOKS) if anchor.startswith("askfirst")}
    assert sections == {name.lower() for name in ALARMS}


@pytest.mark.parametrize("rule", rules().values(), ids=list(rules()))
def test_a_rule_asks_only_for_what_there_is(rule: Rule) -> None:
    recorded = {name for name, each in rules().items() if not each.is_alarm}
    assert rule.metrics
    assert rule.metrics <= METRICS.keys() | recorded | OWN
    assert rule.labels <= LABELS.keys() | TARGET_LABELS


def test_a_figure_that_is_recorded_is_used() -> None:
    used = {name for rule in rules().values() for name in rule.metrics}
    assert {name for name, rule in rules().items() if not rule.is_alarm} <= used


def test_the_commands_that_an_alarm_names_exist() -> None:
    from daemon.cli import COMMANDS

    texts = [rule.annotations["description"] for rule in ALARMS.values()]
    texts += [headings(ROOT / RUNBOOKS)[name.lower()] for name in ALARMS]
    named = {found for text in texts for found in re.findall(r"(?:^|[\s`$(])askfirst ([a-z]+)\b", text)}
    # In a sentence the word after it may be any.
    assert named - set(COMMANDS) <= {"shows"}


def test_a_copy_of_the_rules_for_tests_differs_in_its_durations_only(tmp_path: Path) -> None:
    copy = tmp_path / "rules.yml"
    copy.write_text(quickened(RULES, factor=60))
    said(tool("promtool"), "check", "rules", copy)
    quick = rules(copy)
    down = quick["AskfirstDown"]
    assert down.expr == ALARMS["AskfirstDown"].expr
    assert "for: 5000ms" in copy.read_text()
    assert "[60000ms]" in quick["AskfirstClockStepped"].expr
    assert "offset 75000ms" in quick["AskfirstClockStepped"].expr
    assert {name: _timeless(rule) for name, rule in quick.items()} == {
        name: _timeless(rule) for name, rule in rules().items()
    }
    told = quickened_receiver(FOLDER / "alertmanager.example.yml", "http://127.0.0.1:9/")
    assert "group_wait: 75ms" in told
    assert "8123" not in told


def _timeless(rule: Rule) -> str:
    return re.sub(r"\d+(?:ms|[smhdw])\b", "T", " ".join(rule.expr.split()))
