"""Levels of parts: what the configuration says, what is asked for meanwhile, and what is never shown."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from daemon.control.logs import LogControls
from daemon.errors import DaemonError, SettingsError
from daemon.observability.levels import installed_levels
from daemon.observability.logging import adjust_logging, configure_logging
from daemon.parts import LEAST, QUIET, checked_levels, parse_levels
from daemon.settings import load_settings
from tests.support.waiting import seen

Start = Callable[..., Callable[[], list[str]]]

LOGGERS = ("llm.router", "agents.garden", "agents.pantry", "daemon.store.space", "httpx", "somebody.else")


@pytest.fixture
def start() -> Iterator[Start]:
    """Begins logging; what it returns gives the events that were logged so far."""
    stream = io.StringIO()
    closes: list[Callable[[], None]] = []

    def begin(level: str = "info", levels: dict[str, str] | None = None) -> Callable[[], list[str]]:
        closes.append(configure_logging(level, "json", stream, levels=levels))

        def logged() -> list[str]:
            closes[0]()
            return [json.loads(line)["event"] for line in stream.getvalue().splitlines()]

        return logged

    yield begin
    for close in closes:
        close()


def heard() -> dict[str, str]:
    """The least serious kind of line that each logger lets through."""
    return {
        name: logging.getLevelName(logging.getLogger(name).getEffectiveLevel()).lower() for name in LOGGERS
    }


def test_a_part_has_its_own_level_with_all_below_it(start: Start) -> None:
    logged = start("warning", {"llm": "debug", "agents.garden": "info", "daemon.store": "error"})
    for name in LOGGERS:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(level, "%s %s", name, logging.getLevelName(level))
    found = logged()
    assert [each for each in found if each.startswith("llm.router")] == [
        f"llm.router {level}" for level in ("DEBUG", "INFO", "WARNING", "ERROR")
    ]
    assert [each.split()[1] for each in found if each.startswith("agents.garden")] == [
        "INFO", "WARNING", "ERROR",
    ]  # fmt: skip
    assert [each.split()[1] for each in found if each.startswith("daemon")] == ["ERROR"]
    assert [each.split()[1] for each in found if each.startswith("agents.pantry")] == ["WARNING", "ERROR"]


def test_at_debug_only_our_own_parts_say_everything(start: Start) -> None:
    start("debug")
    assert heard() == {
        "llm.router": "debug",
        "agents.garden": "debug",
        "agents.pantry": "debug",
        "daemon.store.space": "debug",
        "httpx": "warning",
        "somebody.else": "info",  # nobody knows what it would show
    }


def test_a_library_is_more_talkative_only_if_it_is_named(start: Start) -> None:
    start("info", {"httpx": "info", "apscheduler": "debug"})
    assert heard()["httpx"] == "info"
    assert logging.getLogger("apscheduler.scheduler").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("httpcore").isEnabledFor(logging.INFO)


def test_what_was_asked_for_wins_until_it_is_forgotten(start: Start) -> None:
    start("info", {"llm": "warning"})
    levels = installed_levels()
    levels.ask({"llm": "debug", "agents.garden": "error"})
    assert (heard()["llm.router"], heard()["agents.garden"]) == ("debug", "error")
    assert levels.as_data() == {
        "level": "info",
        "parts": [
            {"part": "agents.garden", "level": "error", "from": "command", "seconds_left": None},
            {"part": "llm", "level": "debug", "from": "command", "seconds_left": None},
        ],
    }
    assert levels.forget(["llm", "daemon"]) == ("llm",)
    assert (heard()["llm.router"], heard()["agents.garden"]) == ("warning", "error")
    assert levels.forget() == ("agents.garden",)
    assert heard()["agents.garden"] == "info"


def test_another_configuration_leaves_what_was_asked_for_in_force(start: Start) -> None:
    start("info", {"llm": "warning", "daemon": "error"})
    installed_levels().ask({"llm": "debug"})
    adjust_logging("warning")
    assert (heard()["llm.router"], heard()["daemon.store.space"]) == ("debug", "error")
    adjust_logging("warning", levels={"agents": "info"})
    assert heard()["agents.garden"] == "info"
    assert (heard()["llm.router"], heard()["daemon.store.space"]) == ("debug", "warning")
    installed_levels().forget()
    assert heard()["llm.router"] == "warning"


def test_at_the_end_every_logger_is_as_before(start: Start) -> None:
    logging.getLogger("daemon.store").setLevel(logging.CRITICAL)
    before = {name: logging.getLogger(name).level for name in ("", "llm", "daemon.store", *QUIET)}
    logged = start("debug", {"daemon.store": "debug", "httpx": "info"})
    installed_levels().ask({"llm": "error"})
    logged()
    assert {name: logging.getLogger(name).level for name in before} == before
    logging.getLogger("daemon.store").setLevel(logging.NOTSET)


async def test_a_level_that_was_asked_for_a_while_goes_back_by_itself(start: Start) -> None:
    logged = await asyncio.to_thread(start, "info")
    levels = installed_levels()
    levels.ask({"llm": "debug"}, seconds=3600)
    levels.ask({"llm": "debug", "daemon": "debug"}, seconds=0.05)  # takes the place of the hour
    levels.ask({"agents": "debug"})
    assert [each["seconds_left"] for each in levels.as_data()["parts"]] == [None, 1.0, 1.0]
    await seen(lambda: len(levels.as_data()["parts"]) == 1)
    assert (heard()["llm.router"], heard()["daemon.store.space"]) == ("info", "info")
    assert heard()["agents.garden"] == "debug"
    events = await asyncio.to_thread(logged)
    assert events == ["a log level is as the configuration has it again"] * 2


@pytest.mark.parametrize(
    ("levels", "fault"),
    [
        ({"llm": "loud"}, "llm: 'loud' is no level; levels are debug, info, warning, error"),
        ({"llm": 10}, "llm: 10 is no level"),
        ({"llmm": "debug"}, "there is nothing called 'llmm' that logs; parts are llm, agents,"),
        ({"daemon.storr": "debug"}, "there is nothing called 'daemon.storr'"),
        ({"agents.gardn": "debug"}, "there is nothing called 'agents.gardn'"),
        ({"agents.": "debug"}, "there is nothing called 'agents.'"),
        ({"../llm": "debug"}, "there is nothing called '../llm'"),
        ({"": "debug"}, "there is nothing called ''"),
        ({"askfirst.x": "debug"}, "there is nothing called 'askfirst.x'"),
        (
            {"httpcore.http11": "debug"},
            "httpcore.http11 is never logged at debug: its lines would show headers",
        ),
        ({"sqlalchemy.engine": "info"}, "would show what is written into the database; the least is warning"),
        ({"openai": "debug"}, "would show what models are asked; the least is info"),
    ],
)
async def test_what_cannot_work_is_refused_whole(levels: dict[str, str], fault: str, start: Start) -> None:
    await asyncio.to_thread(start)
    controls = LogControls(lambda: ("garden",))
    with pytest.raises(DaemonError, match=r"llm|nothing|show|level") as caught:
        await controls.ask({"daemon": "debug", **levels}, "ana")
    assert fault in str(caught.value)
    assert (await controls.show())["parts"] == []


def test_what_there_is_can_be_named() -> None:
    parts = (
        "llm",
        "llm.router",
        "agents",
        "agents.base",
        "agents.garden",
        "daemon",
        "daemon.store",
        "askfirst",
    )
    libraries = ("uvicorn", "alembic.runtime", "py.warnings", "asyncio", "pytest")
    levels = dict.fromkeys((*parts, *libraries), "debug")
    assert checked_levels(levels, agents=["garden"]) == levels
    assert set(LEAST) <= set(QUIET)


@pytest.mark.parametrize("seconds", [0, -5, 8 * 24 * 3600])
async def test_a_while_has_its_bounds(seconds: int, start: Start) -> None:
    await asyncio.to_thread(start)
    with pytest.raises(DaemonError, match="1 second to 7 days"):
        await LogControls(lambda: ()).ask({"llm": "debug"}, "ana", seconds)


def test_a_program_with_a_log_of_its_own_says_so() -> None:
    with pytest.raises(DaemonError, match="a log of its own"):
        installed_levels()


def test_the_environment_has_them_in_one_line() -> None:
    assert parse_levels(" llm=debug , agents.garden = info,") == {"llm": "debug", "agents.garden": "info"}
    for text in ("llm", "llm=", "=debug"):
        with pytest.raises(ValueError, match="is no part with its level"):
            parse_levels(text)
    with pytest.raises(SettingsError, match=r"LOG_LEVELS: .*'llm' is no part with its level"):
        load_settings(None, {"ASKFIRST_DAEMON__LOG_LEVELS": "llm"})
    settings = load_settings(None, {"ASKFIRST_DAEMON__LOG_LEVELS": "llm=debug, daemon.store=error"})
    assert settings.daemon.log_levels == {"llm": "debug", "daemon.store": "error"}
