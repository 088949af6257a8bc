"""AgentConfig: an agent's table of the configuration, checked where it enters, every problem at once."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from typing import Any

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.errors import AgentSettingsError
from agents.proposal import Approvers, Proposal


class Plain(BaseAgent):
    """Has no settings of its own."""

    every = "2h"

    async def analyze(self) -> list[Proposal]:
        return []


class PantrySettings(BaseModel):
    folder: str
    days: int = Field(3, ge=1)


class Pantry(Plain):
    """Has some."""

    Settings = PantrySettings


def problems_of(table: dict[str, Any], agent_cls: type[BaseAgent] | None = None) -> dict[str, str]:
    with pytest.raises(AgentSettingsError) as caught:
        AgentConfig.from_table("pantry", table, agent_cls)
    assert caught.value.agent == "pantry"
    return dict(caught.value.problems)


def test_an_empty_table_gives_the_defaults() -> None:
    assert AgentConfig.from_table("pantry", {}) == AgentConfig(name="pantry")
    config = AgentConfig(name="pantry")
    assert (config.enabled, config.every) == (True, timedelta(hours=1))
    assert (config.timeout, config.expires_after) == (timedelta(minutes=5), timedelta(hours=72))
    assert (config.max_proposals, config.max_open, config.approvers) == (100, 200, Approvers())


def test_a_table_says_how_an_agent_is_run_and_keeps_its_own_settings() -> None:
    text = """
    enabled = false
    every = "90s"
    timeout = 20
    max_proposals = 5
    max_open = 6
    expires_after = "1d"
    approvers = { mode = "quorum", people = ["ana", "luis", "eva"], quorum = 2 }
    folder = "data"
    rooms = { kitchen = 2 }
    """
    assert AgentConfig.from_table("pantry", tomllib.loads(text)) == AgentConfig(
        name="pantry",
        enabled=False,
        every=timedelta(seconds=90),
        timeout=timedelta(seconds=20),
        max_proposals=5,
        max_open=6,
        expires_after=timedelta(days=1),
        approvers=Approvers(mode="quorum", people=("ana", "luis", "eva"), quorum=2),
        settings={"folder": "data", "rooms": {"kitchen": 2}},
    )


def test_values_that_are_what_they_shall_become_are_taken() -> None:
    table = {"expires_after": timedelta(hours=5), "approvers": Approvers(people=("ana",))}
    config = AgentConfig.from_table("pantry", table)
    assert (config.expires_after, config.approvers.people) == (timedelta(hours=5), ("ana",))


def test_the_agent_says_how_often_it_is_run_unless_the_table_does() -> None:
    assert AgentConfig.from_table("plain", {}, Plain).every == timedelta(hours=2)
    assert AgentConfig.from_table("plain", {"every": "5m"}, Plain).every == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("enabled", "yes", "true or false"),
        ("enabled", 1, "true or false"),
        ("every", "soon", "'soon' is not a duration"),
        ("every", "0.5s", "at least 1s"),
        ("every", 0, "at least 1s"),
        ("every", True, "a duration"),
        ("every", ["1h"], "a duration"),
        ("every", {"hours": 1}, "a duration"),
        ("timeout", "0s", "longer than 0"),
        ("timeout", "-3s", "'-3s' is not a duration"),
        ("expires_after", timedelta(0), "longer than 0"),
        ("max_proposals", 0, "a whole number of 1 or more"),
        ("max_proposals", 2.0, "a whole number of 1 or more"),
        ("max_open", "200", "a whole number of 1 or more"),
        ("max_open", True, "a whole number of 1 or more"),
        ("approvers", "ana", "a table such as"),
        ("approvers", {"mode": "all"}, "needs the names of the people"),
        ("approvers", {"mode": "quorum", "people": ["ana"], "quorum": 2}, "cannot be reached"),
        ("approvers.mode", {"mode": "most"}, "one of any, all, quorum"),
        ("approvers.mode", {"mode": ["any"]}, "one of any, all, quorum"),
        ("approvers.people", {"people": "ana"}, "a list of names"),
        ("approvers.people", {"people": ["ana", 3]}, "a list of names"),
        ("approvers.people", {"people": [" "]}, "a list of names"),
        ("approvers.quorum", {"quorum": 0}, "a whole number of 1 or more"),
        ("approvers.poeple", {"poeple": ["ana"]}, "did you mean 'people'?"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_would(key: str, value: Any, said: str) -> None:
    (found,) = problems_of({key.partition(".")[0]: value}).items()
    assert found[0] == key
    assert said in found[1]


def test_all_problems_are_told_at_once_the_agents_own_included() -> None:
    table = {"every": "soon", "max_open": 0, "approvers": {"mode": "most", "quorum": 0}, "days": 0}
    assert list(problems_of(table, Pantry)) == [
        "every",
        "max_open",
        "approvers.mode",
        "approvers.quorum",
        "folder",
        "days",
    ]


def test_without_the_class_settings_of_the_agents_own_are_kept_unchecked() -> None:
    config = AgentConfig.from_table("pantry", {"days": "many", "anything": 1})
    assert config.settings == {"days": "many", "anything": 1}


COMMON = (
    "enabled, every, cron, at, schedule_timezone, after, watch, webhook, before, jitter, quiet, catch_up, "
    "max_lateness, priority, backoff, quarantine_after, ping_url, isolation, max_memory_mb, max_cpu, "
    "max_bytes, timeout, max_proposals, max_open, expires_after, approvers"
)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("evry", "did you mean 'every'?"),
        ("max_prop", "did you mean 'max_proposals'?"),
        ("fodler", "did you mean 'folder'?"),
        ("colour", f"known are {COMMON}, days, folder"),
    ],
)
def test_a_key_that_nobody_knows_leads_to_the_nearest_one(key: str, said: str) -> None:
    assert problems_of({"folder": "data", key: 1}, Pantry) == {key: f"unknown setting; {said}"}


def test_an_agent_without_settings_knows_the_common_keys_only() -> None:
    assert problems_of({"folder": "data", "timout": 3}, Plain) == {
        "folder": f"unknown setting; known are {COMMON}",
        "timout": "unknown setting; did you mean 'timeout'?",
    }


def test_an_agent_that_allows_any_key_gets_any_key() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Collector(Plain):
        Settings = Open

    assert AgentConfig.from_table("collector", {"anything": 1}, Collector).settings == {"anything": 1}


def test_a_setting_is_known_by_its_alias() -> None:
    class Named(BaseModel):
        source: str = Field(alias="from")
        until: str = Field("", validation_alias=AliasChoices("to", "until"))
        first: int = Field(0, validation_alias=AliasPath("counts", 0))

    class Mover(Plain):
        Settings = Named

    table = {"from": "here", "until": "there", "counts": [7]}
    assert AgentConfig.from_table("mover", table, Mover).settings == table
    assert set(problems_of({"source": "here"}, Mover)) == {"source", "from"}


def test_a_setting_may_be_known_by_name_and_alias() -> None:
    class Both(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        source: str = Field(alias="from")

    class Mover(Plain):
        Settings = Both

    for key in ("source", "from"):
        assert AgentConfig.from_table("mover", {key: "here"}, Mover).settings == {key: "here"}


def test_an_agent_that_takes_a_common_key_for_itself_is_told() -> None:
    class Greedy(BaseModel):
        timeout: int = 3

    class Taker(Plain):
        Settings = Greedy

    (found,) = problems_of({}, Taker).items()
    assert found[0] == "timeout"
    assert "rename it in" in found[1]


def test_an_agent_whose_own_interval_cannot_be_read_is_told() -> None:
    class Hasty(Plain):
        every = "now and then"

    assert "'now and then' is not a duration" in problems_of({}, Hasty)["every"]
    assert AgentConfig.from_table("hasty", {"every": "1h"}, Hasty).every == timedelta(hours=1)
