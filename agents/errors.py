"""What can go wrong with an agent.

AgentError
|-- AgentNotFound        no agent of that name
|-- AgentLoadError       its module or class cannot be loaded
|-- AgentSettingsError   its settings cannot work
|-- InvalidProposal      a proposal's fields cannot work
|-- SourceError          the data it looks at cannot be read; names the file, line and column
|-- PreconditionFailed   what a proposal would change is no longer as it was when it was proposed
`-- UndoConflict         what an undo would restore has been changed since
"""

from __future__ import annotations


class AgentError(Exception):
    """Anything an agent reports about itself; the message names the thing and the way out."""


class AgentNotFound(AgentError):
    """There is no agent of that name; the message lists those there are."""


class AgentLoadError(AgentError):
    """The agent's module cannot be imported, or its class is no `BaseAgent`."""


class AgentSettingsError(AgentError):
    """The agent's settings cannot work.

    Attributes:
        problems: pairs of the key inside the agent's table (dotted) and what is wrong with it.
    """

    def __init__(self, agent: str, problems: tuple[tuple[str, str], ...]) -> None:
        self.agent = agent
        self.problems = problems
        super().__init__("; ".join(f"agents.{agent}.{key}: {text}" for key, text in problems))


class InvalidProposal(AgentError):
    """A proposal's fields cannot work together."""


class SourceError(AgentError):
    """The data an agent looks at cannot be read."""


class PreconditionFailed(AgentError):
    """What the proposal would change is no longer as it was: nothing was changed, a new run proposes anew."""


class UndoConflict(AgentError):
    """What the undo would restore was changed since: nothing was changed; the message says what differs."""
