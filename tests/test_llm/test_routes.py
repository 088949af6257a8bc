"""Routes: which backend is asked for what, and everything that cannot work, said at once."""

from __future__ import annotations

from typing import Any

import pytest

from llm import ConfigurationError, LLMConfig
from llm.routes import Routes
from llm.types import Caller

OLLAMA = LLMConfig(backend="ollama", enable_cache=False)
REMOTE = LLMConfig(backend="remote", enable_cache=False)
MOCK = LLMConfig(backend="mock", enable_cache=False)
TWO = {"small": OLLAMA, "big": REMOTE}


def test_without_a_route_all_backends_are_asked_in_their_order() -> None:
    assert Routes(backends=TWO).chain(Caller()) == ("small", "big")


def test_a_task_s_route_wins_over_an_agent_s_and_that_over_the_default() -> None:
    routes = Routes(
        backends=TWO,
        default=("small", "big"),
        agents={"matchmaker": ("big",)},
        tasks={"title": ("small",)},
    )
    assert routes.chain(Caller(agent="other")) == ("small", "big")
    assert routes.chain(Caller(agent="matchmaker", task="match")) == ("big",)
    assert routes.chain(Caller(agent="matchmaker", task="title")) == ("small",)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backends": {}}, ["backends: there is no backend"]),
        ({"default": ("smal",)}, ["routes.default", "'smal'", "small, big"]),
        ({"default": ("big", "small", "big")}, ["routes.default", "'big' is there twice"]),
        ({"agents": {"x": ()}}, ["routes.agents.x", "at least one"]),
        ({"tasks": {"title": ("tiny",)}}, ["routes.tasks.title", "'tiny'"]),
        ({"escalate": {"small": "huge"}}, ["backends.small.escalate", "'huge'"]),
        ({"escalate": {"small": "big", "big": "small"}}, ["backends.small.escalate", "its own answer"]),
        ({"escalate": {"small": "small"}}, ["backends.small.escalate", "its own answer"]),
        ({"backends": {**TWO, "Big One": OLLAMA}}, ["backends.Big One", "a-z, 0-9"]),
        ({"backends": {**TWO, "fake": MOCK}}, ["backends.fake.backend", "canned"]),
    ],
)
def test_what_cannot_work_is_an_error_that_names_the_key(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Routes(**{"backends": TWO, **values})
    for word in words:
        assert word in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Routes(backends=TWO, default=("a",), tasks={"title": ("b",)}, escalate={"small": "c"})
    assert all(f"{name!r}" in str(caught.value) for name in "abc")


def test_several_mock_backends_may_stand_together() -> None:
    assert Routes(backends={"one": MOCK, "two": MOCK}).default == ("one", "two")
