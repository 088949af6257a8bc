"""What happened so far, counted from events: the numbers behind `AgentScheduler.get_stats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agents.proposal import ProposalStatus
from daemon.events import Event, ProposalChanged, RunFinished, RunOutcome, RunResult


class Totals:
    """Runs by outcome and each agent's last one, proposals by status, and what the model was asked.

    Attributes:
        last: the last run of each agent.
        llm: `LLMClient.get_stats` as it was last seen, None without a model.
    """

    def __init__(self) -> None:
        self.last: dict[str, RunResult] = {}
        self.llm: dict[str, Any] | None = None
        self._runs: Counter[RunOutcome] = Counter()
        self._proposals: Counter[ProposalStatus] = Counter()

    def set_proposals(self, counts: Mapping[tuple[str, ProposalStatus], int]) -> None:
        """Begin again from what the store counts by agent and status."""
        self._proposals.clear()
        for (_, status), count in counts.items():
            self._proposals[status] += count

    def take_note(self, event: Event) -> None:
        """Count one event."""
        match event:
            case RunFinished(result=result):
                self._runs[result.outcome] += 1
                self.last[result.agent] = result
            case ProposalChanged(proposal=proposal, before=before):
                self._proposals[proposal.status] += 1
                if before is not None:
                    self._proposals[before] -= 1

    def as_json(self) -> dict[str, Any]:
        """The totals as plain data."""
        return {
            "runs": {outcome.value: self._runs[outcome] for outcome in RunOutcome},
            "proposals": {
                status.value: self._proposals[status]
                for status in ProposalStatus
                if self._proposals[status] > 0
            },
            "llm": self.llm,
        }

    def last_as_json(self, agent: str) -> dict[str, Any] | None:
        """The agent's last run as plain data, None when there was none."""
        run = self.last.get(agent)
        if run is None:
            return None
        return {
            "run_id": run.run_id,
            "outcome": run.outcome.value,
            "started_at": iso(run.started_at),
            "seconds": run.seconds,
        }


def iso(moment: datetime | None) -> str | None:
    """A moment in UTC by ISO 8601."""
    return None if moment is None else moment.astimezone(UTC).isoformat()
