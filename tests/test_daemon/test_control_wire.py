"""Lines of the control socket: what goes in comes out, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.errors import AgentSettingsError, InvalidProposal
from daemon.control.wire import ERRORS, Request, error_line, read_error, read_request
from daemon.errors import ControlError, DaemonError, NotUnderstood, SettingsError, SettingsProblem
from daemon.plain import loads
from llm.errors import BudgetExceeded, RateLimited


def across(error: BaseException) -> Exception:
    return read_error(loads(error_line(error))["error"])


@pytest.mark.parametrize("kind", sorted(ERRORS))
def test_every_error_of_ours_is_raised_again_as_itself(kind: str) -> None:
    error = ERRORS[kind].__new__(ERRORS[kind])
    error.args = ("what is wrong, and the way out: \x1b \udcff",)
    found = across(error)
    assert type(found) is ERRORS[kind]
    assert str(found) == str(error)


def test_errors_keep_what_they_carry() -> None:
    problems = [SettingsProblem(key="web.port", message="no", source="/a.toml", line=3)] * 2
    settings = across(SettingsError(problems))
    assert isinstance(settings, SettingsError)
    assert settings.problems == tuple(problems)
    assert settings.exit_code == 78
    agent = across(AgentSettingsError("garden", (("beds", "no such file"),)))
    assert isinstance(agent, AgentSettingsError)
    assert (agent.agent, agent.problems) == ("garden", (("beds", "no such file"),))
    limited = across(RateLimited("wait", retry_after=5.0, quota=True))
    assert isinstance(limited, RateLimited)
    assert (limited.retry_after, limited.quota, limited.retryable) == (5.0, True, False)
    budget = across(BudgetExceeded("spent", budget="5 usd/day", used=4.5))
    assert isinstance(budget, BudgetExceeded)
    assert (budget.budget, budget.used) == ("5 usd/day", 4.5)


class Odd(InvalidProposal):
    """Somebody else's error, below one of ours."""


def test_an_error_that_the_other_end_does_not_know_becomes_the_nearest_that_it_does() -> None:
    assert type(across(Odd("odd"))) is InvalidProposal
    assert type(across(ZeroDivisionError("division"))) is DaemonError
    carrying = DaemonError("x")
    carrying.problems = object()  # type: ignore[attr-defined]  # nothing that can be sent
    assert str(across(carrying)) == "x"


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"kind": "SystemExit", "message": "x", "more": {}},
        {"kind": "ValueError", "message": "x", "more": {}},
        {"kind": "DaemonError", "message": 3, "more": {}},
        {"kind": "DaemonError", "message": "x"},
    ],
)
def test_an_answer_that_is_no_error_of_ours_is_not_raised_as_something_else(data: Any) -> None:
    assert type(read_error(data)) is ControlError


def test_an_error_brings_no_attribute_that_none_of_ours_has() -> None:
    found = read_error({"kind": "DaemonError", "message": "x", "more": {"exit_code": 0, "__class__": "y"}})
    assert isinstance(found, DaemonError)
    assert found.exit_code == 1
    assert vars(found) == {}


def test_a_request_comes_out_as_it_went_in() -> None:
    request = Request("proposals.get", {"proposal_id": 3, "$": "odd", "by": "\udcff\u2028\n"})
    assert read_request(request.line()) == request
    assert request.line().count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n",
        b"[]",
        b"7",
        b'{"do": "x"}',
        b'{"do": 3, "with": {}}',
        b'{"do": "x", "with": []}',
        b'{"do": "x", "with": {}, "more": 1}',
        b'{"do": "x", "with": {"$": "map", "v": [[1, 2]]}}',
        b'{"do": "x", "with": {"$": "Popen", "v": {}}}',
        b'{"do": "x", "with": {"a": {"$": "Proposal", "v": {"agent": 3}}}}',
        b'{"do": "x", "with": {"a": {"$": "datetime", "v": 3}}}',
        b'{"do": "x", "with": {"a": {"$": "timedelta", "v": 1e400}}}',
        b'{"do": "x", "with": {"a": {"$": ["list"], "v": 1}}}',
        b'{"do": "x", "with": {"a": {"$": "path"}}}',
        b'{"do": "x", "with": {"a": ' + b"[" * 100_000,
        b'{"do": "x", "with": {"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
        b'{"do": "x", "with": {"a": ' + b"9" * 10_000 + b"}}",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_request_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(NotUnderstood):
        read_request(line)


def test_everything_on_the_wire_is_one_line_of_ascii() -> None:
    line = error_line(DaemonError("ä\n\u2028"))
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["error"]["message"] == "ä\n\u2028"
