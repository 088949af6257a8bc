"""Proposals that wait: expired when their time is over, woken when their snooze is; never approved."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agents.proposal import Proposal, ProposalStatus
from daemon.errors import DaemonError

if TYPE_CHECKING:
    from daemon.runtime import Runtime

_log = logging.getLogger(__name__)

AT_LEAST_EVERY = timedelta(seconds=60)
"""Another program (the command line) may snooze a proposal unseen, so the deadlines are read so often."""

_WAITING = frozenset({ProposalStatus.PENDING, ProposalStatus.SNOOZED, ProposalStatus.APPROVED})


class Deadlines:
    """Looks after the deadlines of all proposals, whenever it is asked to."""

    def __init__(self) -> None:
        self._in_trouble = False

    async def tend(self, runtime: Runtime) -> datetime:
        """Expire and wake what is due, and tell when to come back.

        A database that is away is told once and asked again later.
        """
        latest = datetime.now(UTC) + AT_LEAST_EVERY
        try:
            coming = await self._coming(runtime, latest)
        except DaemonError as error:
            if not self._in_trouble:
                _log.warning("the deadlines of proposals cannot be looked after: %s", error)
            self._in_trouble = True
            return latest
        if self._in_trouble:
            _log.info("the deadlines of proposals are looked after again")
        self._in_trouble = False
        return min(coming, default=latest)

    @staticmethod
    async def _coming(runtime: Runtime, latest: datetime) -> list[datetime]:
        """The deadlines from now to `latest`; what is due already is done first."""
        found = await runtime.proposals.due(latest)
        now = datetime.now(UTC)
        if any(moment <= now for proposal in found for moment in deadlines_of(proposal)):
            await runtime.desk.expire_due()
            await runtime.desk.wake_due()
            found = await runtime.proposals.due(latest)
        return [moment for proposal in found for moment in deadlines_of(proposal) if moment > now]


def deadlines_of(proposal: Proposal) -> list[datetime]:
    """When something happens to the proposal if nobody decides."""
    if proposal.status not in _WAITING:
        return []
    return [moment for moment in (proposal.expires_at, proposal.snoozed_until) if moment is not None]
