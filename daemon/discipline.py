"""Discipline: what the end of a run, a person or a new configuration makes of an agent's status. Pure.

    a run succeeds               failures are forgotten, holds end; a quarantined agent is active again
    it fails, or takes too long  the agent is left alone for a while, longer with each failure in a row;
                                 after `quarantine_after` failures of its own it is quarantined
    its model fails              the agent is left alone too, but that never leads to quarantine: a model
                                 server that was down for a day needs no human afterwards
    it is cancelled              nothing
    the whole program ends       nothing; three times in a row: quarantined (daemon/interruptions.py)

Quarantine ends by hand, by a run by hand that succeeds, or with another configuration of the agent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.config import AgentConfig
from agents.proposal import sha256_of
from daemon.events import AgentState, AgentStatus, RunOutcome, RunResult
from daemon.intake import MAX_KEY, MAX_SENTENCE, one_line
from daemon.outcome import LONGEST_HOLD

PROGRAM = "askfirst"
"""`AgentStatus.by` of what the program does by itself."""

_LONGEST_ERROR = 300
_FAILED = frozenset({RunOutcome.FAILED, RunOutcome.TIMED_OUT})
# These say when an agent runs and who is told, never how its runs end.
_NO_MATTER = frozenset({"ping_url", "priority"})


def after_run(status: AgentStatus, result: RunResult, config: AgentConfig) -> AgentStatus:
    """The agent's status after a run of it; the same object if the run changes nothing.

    Args:
        status: the one before.
        result: how the run ended.
        config: how the agent is run.
    """
    if result.outcome is RunOutcome.SUCCEEDED:
        return _after_success(status, result.finished_at)
    if result.outcome not in _FAILED or status.state is AgentState.QUARANTINED:
        return status
    return _after_failure(status, result, config)


def after_crashes(status: AgentStatus, crashes: int, digest: str, now: datetime) -> AgentStatus:
    """The agent's status when its last `crashes` runs ended with the whole program: quarantined.

    One that is paused or quarantined already stays so.
    """
    if status.state is not AgentState.ACTIVE:
        return status
    return _quarantined(status, crash_reason(crashes), digest, now)


def crash_reason(crashes: int) -> str:
    """Why an agent is no longer run whose runs take the program down with them."""
    return f"its last {crashes} runs ended with the whole program"


def paused(status: AgentStatus, by: str, reason: str, now: datetime) -> AgentStatus:
    """The agent's status when a person wants it paused; the same object if it is, for that reason."""
    by, reason = one_line(by, MAX_KEY), one_line(reason, MAX_SENTENCE)
    if status.state is not AgentState.PAUSED:
        return AgentStatus(agent=status.agent, state=AgentState.PAUSED, reason=reason, by=by, since=now)
    if (status.by, status.reason) == (by, reason):
        return status
    return replace(status, by=by, reason=reason)


def resumed(status: AgentStatus, by: str, now: datetime | None) -> AgentStatus:
    """The agent's status when it is resumed: active, all failures forgotten; the same object if it is so."""
    if status.state is AgentState.ACTIVE and not status.failures and status.held_until is None:
        return status
    return AgentStatus(agent=status.agent, by=one_line(by, MAX_KEY), since=now)


def resumed_by_configuration(
    status: AgentStatus, digest: str, now: datetime | None = None
) -> AgentStatus | None:
    """The status of a quarantined agent whose configuration is another one now; None if it stays as it is.

    Args:
        status: the one that is kept.
        digest: `config_digest` of its configuration now.
        now: the time of day.
    """
    if status.state is not AgentState.QUARANTINED or status.config_digest == digest:
        return None
    return resumed(status, PROGRAM, now)


def held_until(status: AgentStatus, now: datetime, backoff: Iterable[timedelta] = ()) -> datetime | None:
    """Until when an active agent is left alone; None when nothing holds it (any more).

    A moment beyond the longest possible hold was computed when the clock was wrong, and holds nothing.

    Args:
        status: what is kept about the agent.
        now: the time of day.
        backoff: the agent's back-off, which may be longer than what a model's server can ask for.
    """
    until = status.held_until
    if until is None or until <= now or until - now > max((LONGEST_HOLD, *backoff)):
        return None
    return until


def config_digest(config: AgentConfig) -> str:
    """SHA-256 of an agent's configuration: what of it is not as it is by default, in one canonical form."""
    return sha256_of(json.dumps(_differences(config), sort_keys=True))


def _after_success(status: AgentStatus, now: datetime) -> AgentStatus:
    if status.state is AgentState.QUARANTINED:
        return resumed(status, PROGRAM, now)
    if not status.failures and status.held_until is None:
        return status
    return replace(status, failures=0, model_failures=0, held_until=None, held_because="")


def _after_failure(status: AgentStatus, result: RunResult, config: AgentConfig) -> AgentStatus:
    failures = status.failures + 1
    counted = replace(
        status, failures=failures, model_failures=status.model_failures + int(result.model_failed)
    )
    own = counted.failures - counted.model_failures
    if status.state is AgentState.ACTIVE and not result.model_failed and own >= config.quarantine_after:
        times = "once" if own == 1 else f"{own} times in a row"
        reason = f"it failed {times}, at last with: {one_line(result.error or '', _LONGEST_ERROR)}"
        return _quarantined(counted, reason, config_digest(config), result.finished_at)
    until, because = max(_holds(counted, result, config), default=(None, ""))
    return replace(counted, held_until=until, held_because=because)


def _holds(status: AgentStatus, result: RunResult, config: AgentConfig) -> list[tuple[datetime, str]]:
    """Until when the agent is left alone, and why, for each reason that there is."""
    holds: list[tuple[datetime, str]] = []
    if config.backoff:
        wait = config.backoff[min(status.failures, len(config.backoff)) - 1]
        holds.append((_later(result.finished_at, wait), _in_words(status, result)))
    if result.not_before is not None:
        holds.append((result.not_before, "its model cannot be asked until then"))
    earlier = held_until(status, result.finished_at, config.backoff)
    if (
        earlier is not None and not result.model_failed
    ):  # else its model was asked again and has the last word
        holds.append((earlier, status.held_because))
    return holds


def _in_words(status: AgentStatus, result: RunResult) -> str:
    what = "its model failed" if result.model_failed else "it failed"
    times = "" if status.failures == 1 else f"; failure number {status.failures} in a row"
    return f"{what}: {one_line(result.error or '', _LONGEST_ERROR)}{times}"


def _quarantined(status: AgentStatus, reason: str, digest: str, now: datetime) -> AgentStatus:
    return replace(
        status,
        state=AgentState.QUARANTINED,
        reason=reason,
        by=PROGRAM,
        since=now,
        held_until=None,
        held_because="",
        config_digest=digest,
    )


def _later(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def _differences(config: AgentConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if field.name not in _NO_MATTER and value != default:
            found[field.name] = _canonical(value)
    return found


def _canonical(value: Any) -> Any:
    """A value of a configuration as JSON data, whatever it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _canonical(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _canonical(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return f"{type(value).__name__} {value}"
