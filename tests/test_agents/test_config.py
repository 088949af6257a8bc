"""AgentConfig: an agent's table of the configuration, checked where it enters, every problem at once."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field

from agents.base import BaseAgent
from agents.config import AgentConfig
from agents.errors import AgentSettingsError
from agents.proposal import Approvers, Proposal
from agents.schedule import At, BeforeEvent, Cron, Every, QuietWindow, Schedule


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


BERLIN = ZoneInfo("Europe/Berlin")


def test_a_table_says_when_an_agent_is_due_and_what_holds_it() -> None:
    text = """
    cron = " 0  7 * * mon-fri "
    schedule_timezone = "Europe/Berlin"
    after = "first"
    watch = ["inbox", "*.csv"]
    webhook = true
    before = { calendar = "events.ics", lead = "2h", title = " party " }
    jitter = "5m"
    quiet = "sat,sun 00:00-24:00"
    catch_up = "all"
    max_lateness = "1h"
    priority = -3
    backoff = ["1m", "1h"]
    quarantine_after = 3
    ping_url = "https://hc.example/uuid"
    isolation = "process"
    max_memory_mb = 512
    max_cpu = "30s"
    max_bytes = 1000
    """
    config = AgentConfig.from_table("pantry", tomllib.loads(text))
    weekend = QuietWindow(frozenset({5, 6}), 0, 1440)
    before = BeforeEvent("events.ics", timedelta(hours=2), "party")
    assert config == AgentConfig(
        name="pantry",
        every=None,
        cron="0 7 * * mon-fri",
        schedule_timezone=BERLIN,
        after=("first",),
        watch=("inbox", "*.csv"),
        webhook=True,
        before=before,
        jitter=timedelta(minutes=5),
        quiet=(weekend,),
        catch_up="all",
        max_lateness=timedelta(hours=1),
        priority=-3,
        backoff=(timedelta(minutes=1), timedelta(hours=1)),
        quarantine_after=3,
        ping_url="https://hc.example/uuid",
        isolation="process",
        max_memory_mb=512,
        max_cpu=timedelta(seconds=30),
        max_bytes=1000,
    )
    assert config.schedule == Schedule(
        timed=(Cron("0 7 * * mon-fri", BERLIN),),
        after=("first",),
        watch=("inbox", "*.csv"),
        webhook=True,
        before=before,
        quiet=(weekend,),
        zone=BERLIN,
        jitter=timedelta(minutes=5),
        catch_up="all",
        max_lateness=timedelta(hours=1),
        priority=-3,
    )


def test_the_interval_counts_only_where_nothing_else_makes_an_agent_due() -> None:
    for table in ({"cron": "0 7 * * *"}, {"at": "07:30"}, {"after": "x"}, {"watch": "x"}, {"webhook": True}):
        assert AgentConfig.from_table("plain", table, Plain).every is None, table
    for table in ({"webhook": False}, {"after": []}, {"quiet": "22:00-07:00"}):
        assert AgentConfig.from_table("plain", table, Plain).every == timedelta(hours=2), table
    both = AgentConfig.from_table("plain", {"every": "5m", "watch": "inbox"}, Plain)
    assert (both.schedule.timed, both.schedule.watch) == ((Every(timedelta(minutes=5)),), ("inbox",))


def test_moments_and_times_of_day_are_read_in_every_form() -> None:
    text = """
    schedule_timezone = "Europe/Berlin"
    at = [
        2026-12-24T18:00:00Z, 2026-12-25 09:00:00, 2026-12-31, "2027-01-01 00:00+02:00",
        07:30:00, "18:00", "7:05",
    ]
    """
    config = AgentConfig.from_table("pantry", tomllib.loads(text))
    assert config.at[4:] == (time(7, 30), time(18), time(7, 5))
    moments, *daily = config.schedule.timed
    assert moments == At(
        (
            datetime(2026, 12, 24, 18, tzinfo=UTC),
            datetime(2026, 12, 25, 8, tzinfo=UTC),
            datetime(2026, 12, 30, 23, tzinfo=UTC),
            datetime(2026, 12, 31, 22, tzinfo=UTC),
        )
    )
    assert daily == [Cron(f"{each} * * *", BERLIN) for each in ("30 7", "0 18", "5 7")]


def test_one_value_stands_for_a_list_of_one_and_an_empty_list_for_none() -> None:
    one = AgentConfig.from_table("pantry", {"backoff": "5m", "watch": "inbox", "quiet": "22:00-07:00"})
    assert (one.backoff, one.watch, len(one.quiet)) == ((timedelta(minutes=5),), ("inbox",), 1)
    none = AgentConfig.from_table("pantry", {"backoff": [], "quiet": []})
    assert (none.backoff, none.quiet) == ((), ())


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ({"every": "1h", "cron": "0 7 * * *"}, "cron", "every and cron are both set; keep one of them"),
        ({"every": "1h", "at": "07:30"}, "at", "every and at are both set"),
        ({"cron": "0 7 * * *", "at": "07:30"}, "at", "cron and at are both set"),
        ({"every": "1m", "jitter": "2m"}, "jitter", "must not be longer than every, 1m"),
        ({"quiet": ["22:00-07:00", "07:00-22:00"]}, "quiet", "leaves no minute of the week"),
    ],
)
def test_what_cannot_work_together_is_said(table: dict[str, Any], key: str, said: str) -> None:
    (found,) = problems_of(table).items()
    assert found[0] == key
    assert said in found[1]


def test_the_address_of_a_check_is_a_secret_and_is_not_repeated() -> None:
    assert "s3cret" not in problems_of({"ping_url": "hc.example/s3cret"})["ping_url"]


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
        ("cron", "0 7 * *", "needs five fields"),
        ("cron", "99 7 * * *", "bad minute"),
        ("cron", 7, "must be a text, not 7"),
        ("at", "soon", 'a moment such as "2026-12-24 18:00"'),
        ("at", "2026", "a moment such as"),
        ("at", "25:00", "a moment such as"),
        ("at", 7, "a moment such as"),
        ("at", True, "a moment such as"),
        ("at", {"hour": 7}, "a moment or a list of them"),
        ("at", ["07:30", "07:30:15"], "to the minute"),
        ("at", "0001-01-01 00:00", "in the years 1970 to 9998"),
        ("at", "9999-12-31", "in the years 1970 to 9998"),
        ("schedule_timezone", "Berlin", "'Berlin' is no time zone"),
        ("schedule_timezone", 2, "must be a text"),
        ("after", "Not A Name", "the name of an agent"),
        ("after", ["first", 2], "the name of an agent"),
        ("watch", " ", "a text"),
        ("watch", {"path": "x"}, "a path or a list of them"),
        ("webhook", "yes", "true or false"),
        ("before", "events.ics", 'a table such as { calendar = "events.ics", lead = "2h" }'),
        ("before.calendar", {"lead": "2h"}, "is missing"),
        ("before.lead", {"calendar": "events.ics"}, "is missing"),
        ("before.lead", {"calendar": "events.ics", "lead": "soon"}, "'soon' is not a duration"),
        ("before.lead", {"calendar": "events.ics", "lead": timedelta(-1)}, "0 or longer"),
        ("before.title", {"calendar": "events.ics", "lead": "0s", "title": ""}, "a text"),
        ("before.tilte", {"calendar": "a.ics", "lead": "0s", "tilte": "x"}, "did you mean 'title'?"),
        ("jitter", "-5m", "'-5m' is not a duration"),
        ("quiet", "at night", 'a time span such as "22:00-07:00"'),
        ("quiet", ["22:00-07:00", 7], "a text"),
        ("catch_up", "twice", "one of once, all, skip"),
        ("catch_up", ["all"], "one of once, all, skip"),
        ("max_lateness", "0s", "longer than 0"),
        ("priority", 1001, "from -1000 to 1000"),
        ("priority", 1.5, "from -1000 to 1000"),
        ("priority", True, "from -1000 to 1000"),
        ("backoff", ["30s", "0s"], "longer than 0"),
        ("backoff", {"first": "30s"}, "a duration or a list of them"),
        ("quarantine_after", 0, "a whole number of 1 or more"),
        ("ping_url", "ftp://x", "begins with http:// or https://"),
        ("ping_url", 7, "begins with http:// or https://"),
        ("isolation", "thread", "one of process, none"),
        ("max_memory_mb", 0, "a whole number of 1 or more"),
        ("max_cpu", "0s", "longer than 0"),
        ("max_bytes", "1 MB", "a whole number of 1 or more"),
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
