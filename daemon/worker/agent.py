"""IsolatedAgent: an agent whose code runs in a worker; to whoever runs it, it is an agent like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.errors import InvalidProposal
from agents.proposal import Proposal
from daemon.intake import MAX_RETURNED, Refused
from daemon.worker.host import Launch, Worker

_MOST_COUNTED = 1_000_000


class IsolatedAgent(BaseAgent):
    """Stands for an agent of another process. Its worker is started when it is first needed.

    `ended` or `lent` of the AgentMaker must be round whatever uses it, so that the worker ends with it.
    """

    name = "isolated"

    def __init__(self, context: AgentContext, worker: Worker) -> None:
        # The real agent makes its templates and reads its settings where it is.
        self.context = context
        self.worker = worker

    @classmethod
    def of(cls, kind: type[BaseAgent], context: AgentContext, launch: Launch) -> IsolatedAgent:
        """One that goes by everything that is known of the agent `kind`."""
        known = ("name", "description", "every", "Settings", "payloads")
        own = {key: getattr(kind, key) for key in known}
        stand_in = type(kind.__name__, (cls,), {**own, "__module__": __name__, "__doc__": kind.__doc__})
        agent: IsolatedAgent = stand_in(context, Worker(launch, context))
        return agent

    async def analyze(self) -> list[Proposal]:
        """Have the agent analyze."""
        still = [proposal.id for proposal in self.context.open_proposals]
        answer = await self.worker.order("analyze", still=still)
        if "odd" in answer.message:
            odd: list[Proposal] = _something(answer.message["odd"])
            return odd
        over, more = int(answer.message["over"]), int(answer.message["more"])
        if over > 0:
            answer.items.append(Refused(f"{over} more were left out: {self.worker.limits.too_many_bytes()}"))
        elif more > 0 and len(answer.items) >= MAX_RETURNED:  # these are only counted, never looked at
            answer.items += [None] * min(more, _MOST_COUNTED)
        return answer.items

    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        """Have the agent apply."""
        answer = await self.worker.order("apply", proposal=proposal)
        if "large" in answer.message:
            return _TooLarge(int(answer.message["large"]))
        if "odd" in answer.message:
            odd: Mapping[str, Any] = _something(answer.message["odd"])
            return odd
        undo_data: Mapping[str, Any] | None = answer.message["value"]
        return undo_data

    async def undo(self, proposal: Proposal) -> None:
        """Have the agent undo."""
        await self.worker.order("undo", proposal=proposal)

    async def recheck(self, proposal: Proposal) -> str | None:
        """Have the agent recheck."""
        answer = await self.worker.order("recheck", proposal=proposal)
        why = answer.message["value"]
        return None if why is None else str(why)


@asynccontextmanager
async def ready(agent: BaseAgent) -> AsyncIterator[BaseAgent]:
    """An agent that is loaded, in its worker if it has one; the worker ends with this.

    Raises:
        AgentError: it cannot be loaded.
    """
    async with ended(agent):
        if isinstance(agent, IsolatedAgent):
            await agent.worker.start()
        yield agent


@asynccontextmanager
async def ended(agent: BaseAgent) -> AsyncIterator[BaseAgent]:
    """The agent; its worker, if it has one, ends with this, whatever happens."""
    try:
        yield agent
    finally:
        if isinstance(agent, IsolatedAgent):
            await agent.worker.end()


def _something(kind: object) -> Any:
    """A value of a type of that name: what an agent returned that was neither of what it may return."""
    return type(str(kind)[:100], (), {})()


class _TooLarge(Mapping[str, Any]):
    """Undo data that were too large to be handed over: whoever looks into them is told so."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        msg = f"they are {self._size:,} bytes of JSON"
        raise InvalidProposal(msg)

    def __len__(self) -> int:
        return 1
