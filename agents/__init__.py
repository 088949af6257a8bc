"""Agents: small programs that look at real data and propose what a person may approve.

    from agents import BaseAgent, Proposal

    class PantryAgent(BaseAgent):
        async def analyze(self) -> list[Proposal]: ...

Names are imported on first use, so that `import agents` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.base import BaseAgent
    from agents.config import AgentConfig
    from agents.context import AgentContext
    from agents.errors import (
        AgentError,
        AgentLoadError,
        AgentNotFound,
        AgentSettingsError,
        InvalidProposal,
        PreconditionFailed,
        SourceError,
        UndoConflict,
    )
    from agents.proposal import Approvers, Decision, Evidence, Proposal, ProposalStatus
    from agents.registry import AgentRegistry

_HOMES = {
    "AgentConfig": "agents.config",
    "AgentContext": "agents.context",
    "AgentError": "agents.errors",
    "AgentLoadError": "agents.errors",
    "AgentNotFound": "agents.errors",
    "AgentRegistry": "agents.registry",
    "AgentSettingsError": "agents.errors",
    "Approvers": "agents.proposal",
    "BaseAgent": "agents.base",
    "Decision": "agents.proposal",
    "Evidence": "agents.proposal",
    "InvalidProposal": "agents.errors",
    "PreconditionFailed": "agents.errors",
    "Proposal": "agents.proposal",
    "ProposalStatus": "agents.proposal",
    "SourceError": "agents.errors",
    "UndoConflict": "agents.errors",
}

__all__ = [
    "AgentConfig",
    "AgentContext",
    "AgentError",
    "AgentLoadError",
    "AgentNotFound",
    "AgentRegistry",
    "AgentSettingsError",
    "Approvers",
    "BaseAgent",
    "Decision",
    "Evidence",
    "InvalidProposal",
    "PreconditionFailed",
    "Proposal",
    "ProposalStatus",
    "SourceError",
    "UndoConflict",
]

# Hidden from type checkers: a module __getattr__ would turn every typo into a valid name for them.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOMES:
            message = f"module 'agents' has no attribute {name!r}"
            raise AttributeError(message)
        from importlib import import_module  # noqa: PLC0415 - not needed by those who import a module directly

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted(__all__)
