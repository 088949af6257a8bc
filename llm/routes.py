"""Routes: several backends by name, and which of them is asked for what; frozen, checked where they enter.

Routes(
    backends={"small": LLMConfig(backend="ollama", ...), "big": LLMConfig(backend="remote", ...)},
    default=("small", "big"),            # small, and big when small fails
    agents={"matchmaker": ("big",)},     # what this agent asks
    tasks={"title": ("small",)},         # calls with task="title", whoever makes them
    escalate={"small": "big"},           # what small is unsure about, or cannot put into the form
)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from llm.config import LLMConfig
from llm.errors import ConfigurationError
from llm.types import Caller

BACKEND_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""A backend's name: safe as a metric label and as a key of the configuration."""

MOCK = "mock"

Chain = tuple[str, ...]
Problem = tuple[tuple[str, ...], str]
"""Where something is wrong, such as ("routes", "agents", "matchmaker"), and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Named backends, and the chain of them that a call goes through until one answers.

    Attributes:
        backends: each backend by its name.
        default: the chain of every call that has none of its own; empty means all, in their order.
        agents: chains of agents.
        tasks: chains of tasks; the task's wins over the agent's.
        escalate: the larger backend that is asked as well when a structured answer of this one is unsure, or
            does not fit its schema.
        budget: what all of them together may spend, beside the budget of each one; see `LLMConfig.budget`.

    Raises:
        ConfigurationError: they cannot work; every problem is named at once.
    """

    backends: Mapping[str, LLMConfig]
    default: Chain = ()
    agents: Mapping[str, Chain] = field(default_factory=dict)
    tasks: Mapping[str, Chain] = field(default_factory=dict)
    escalate: Mapping[str, str] = field(default_factory=dict)
    budget: str | None = None

    def __post_init__(self) -> None:
        if not self.default:
            object.__setattr__(self, "default", tuple(self.backends))
        kinds = {name: config.backend for name, config in self.backends.items()}
        problems = route_problems(
            kinds, default=self.default, agents=self.agents, tasks=self.tasks, escalate=self.escalate
        )
        if problems:
            raise ConfigurationError("; ".join(f"{'.'.join(path)}: {text}" for path, text in problems))

    def chain(self, caller: Caller) -> Chain:
        """The backends to ask for `caller`, in their order."""
        if caller.task in self.tasks:
            return self.tasks[caller.task]
        return self.agents.get(caller.agent, self.default)


def route_problems(
    kinds: Mapping[str, str],
    *,
    default: Chain,
    agents: Mapping[str, Chain],
    tasks: Mapping[str, Chain],
    escalate: Mapping[str, str],
) -> list[Problem]:
    """Everything that cannot work, with the key where it stands.

    Args:
        kinds: which backend each name stands for, such as "ollama".
        default: see `Routes`, as are the others.
        agents: by agent.
        tasks: by task.
        escalate: by backend.
    """
    if not kinds:
        return [(("backends",), "there is no backend; name at least one")]
    chains: dict[tuple[str, ...], Chain] = {
        ("routes", "default"): default,
        **{("routes", "agents", name): chain for name, chain in agents.items()},
        **{("routes", "tasks", name): chain for name, chain in tasks.items()},
    }
    return [
        *_name_problems(kinds),
        *(problem for path, chain in chains.items() for problem in _chain_problems(path, chain, kinds)),
        *_escalation_problems(escalate, kinds),
        *_mock_problems(kinds),
    ]


def _name_problems(names: Iterable[str]) -> Iterator[Problem]:
    for name in names:
        if not BACKEND_NAME.fullmatch(name):
            yield (
                ("backends", name),
                "this cannot be a backend's name; names are 1 to 64 of a-z, 0-9, _ and -",
            )


def _chain_problems(path: tuple[str, ...], chain: Chain, known: Iterable[str]) -> Iterator[Problem]:
    if not chain:
        yield path, "a route needs at least one backend"
    for name in dict.fromkeys(chain):
        if name not in known:
            yield path, f"there is no backend {name!r}; there are {', '.join(known)}"
        elif chain.count(name) > 1:
            yield path, f"{name!r} is there twice; a backend that failed is not asked again"


def _escalation_problems(escalate: Mapping[str, str], known: Iterable[str]) -> Iterator[Problem]:
    for name, larger in escalate.items():
        path = ("backends", name, "escalate")
        if larger not in known:
            yield path, f"there is no backend {larger!r}; there are {', '.join(known)}"
        elif name in _followed(larger, escalate):
            yield path, f"{name!r} would be asked about its own answer in the end; escalate to a larger model"


def _followed(name: str, escalate: Mapping[str, str]) -> list[str]:
    """The backends that are asked one after the other from `name` on, each once."""
    found: list[str] = []
    while name not in found:
        found.append(name)
        name = escalate.get(name, name)
    return found


def _mock_problems(kinds: Mapping[str, str]) -> Iterator[Problem]:
    mocks = [name for name, kind in kinds.items() if kind == MOCK]
    if mocks and len(mocks) < len(kinds):
        for name in mocks:
            text = (
                "the mock backend cannot stand beside real ones: its canned answers would decide real things"
            )
            yield ("backends", name, "backend"), text
