"""Plugins are known without a line of theirs running here; those that cannot be imported harm nobody."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from agents import standins
from agents.config import AgentConfig
from agents.context import AgentContext
from agents.errors import AgentError, AgentLoadError, AgentNotFound, AgentSettingsError
from agents.plugins import PREFIX
from agents.prompts import shipped_folders
from agents.registry import AgentRegistry
from agents.standins import StandIn, tagged, untagged
from tests.support.plugins import plugin_folder

PANTRY = '''
    """Where this is imported, a file says so."""
    import os
    from datetime import date
    from pathlib import Path
    from pydantic import AliasPath, BaseModel, ConfigDict, Field, model_validator
    from agents import BaseAgent
    with Path(__file__).parents[1].joinpath("imported").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")

    class Shelf(BaseModel):
        """Its own rules."""
        model_config = ConfigDict(extra="forbid")
        boards: int = Field(3, ge=1, description="how many boards it has")
        since: date | None = None
        kind: str = Field("oak", validation_alias="wood")
        path: Path | None = None

        @model_validator(mode="after")
        def check(self):
            if self.boards == 13:
                raise ValueError("nobody wants thirteen boards")
            return self

    class Jam(BaseModel):
        jars: int

    class Pantry(BaseAgent):
        """Looks at the pantry."""
        every = "30m"
        Settings = Shelf
        payloads = {"jam": Jam}
        async def analyze(self):
            return []

    class Cellar(BaseAgent):
        async def analyze(self):
            return []
'''


def folder_with(tmp_path: Path, **plugins: str) -> Path:
    return plugin_folder(tmp_path, **{name: textwrap.dedent(text) for name, text in plugins.items()})


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    return folder_with(tmp_path, pantry=PANTRY)


def test_a_plugin_is_known_without_a_line_of_it_running_here(plugins: Path) -> None:
    registry = AgentRegistry(plugins, apart=True)
    pantry = registry.get("pantry")
    assert registry.names() == ("cellar", "matchmaker", "pantry")
    assert registry.entry("pantry").location == str(plugins / "pantry.py")
    assert issubclass(pantry, StandIn)
    assert (pantry.description, pantry.every) == ("Looks at the pantry.", "30m")
    assert registry.get("cellar").Settings is None
    assert registry.problems == ()
    imported = plugins.with_name("imported").read_text().split()
    assert len(imported) == 1
    assert str(os.getpid()) not in imported
    assert not [name for name in sys.modules if name.startswith(f"{PREFIX}.pantry")]


def test_looking_again_costs_nothing_until_a_file_is_changed(plugins: Path) -> None:
    first = AgentRegistry(plugins, apart=True).get("pantry")
    assert AgentRegistry(plugins, apart=True).get("pantry") is first
    text = (plugins / "pantry.py").read_text()
    (plugins / "pantry.py").write_text(text.replace("Looks at the", "Minds the"))
    assert AgentRegistry(plugins, apart=True).get("pantry").description == "Minds the pantry."


def test_its_settings_are_checked_by_its_own_model_in_the_other_process(plugins: Path) -> None:
    kind = AgentRegistry(plugins, apart=True).get("pantry")
    table = {"boards": 5, "since": date(2026, 3, 1), "wood": "elm", "every": "5m"}
    config = AgentConfig.from_table("pantry", table, kind)
    assert (config.every, config.settings["boards"]) == (timedelta(minutes=5), 5)
    with pytest.raises(AgentSettingsError) as caught:
        AgentConfig.from_table("pantry", {"boards": 0, "since": "soon", "bords": 1}, kind)
    problems = dict(caught.value.problems)
    assert problems["boards"] == "must be at least 1"
    assert "did you mean 'boards'?" in problems["bords"]
    assert "since" in problems
    with pytest.raises(AgentSettingsError, match="nobody wants thirteen boards"):
        AgentConfig.from_table("pantry", {"boards": 13}, kind)


def test_the_words_about_settings_are_those_of_an_agent_of_this_process(plugins: Path) -> None:
    here, apart = AgentRegistry(plugins).get("pantry"), AgentRegistry(plugins, apart=True).get("pantry")
    for table in ({"boards": 0, "wood": 3, "kind": "oak"}, {"boards": "x", "since": 5.5}, {"boards": 13}):
        said = []
        for kind in (here, apart):
            with pytest.raises(AgentSettingsError) as caught:
                AgentConfig.from_table("pantry", table, kind)
            said.append(caught.value.problems)
        assert said[0] == said[1], table
    assert here.Settings is not None
    assert apart.Settings is not None
    for name, field in here.Settings.model_fields.items():
        stand_in = apart.Settings.model_fields[name]
        assert (stand_in.description, stand_in.default) == (field.description, field.default)


def test_an_edited_payload_is_checked_there_too(plugins: Path) -> None:
    model = AgentRegistry(plugins, apart=True).get("pantry").payloads["jam"]
    assert model.model_validate({"jars": "3"}).model_dump(mode="json", by_alias=True) == {"jars": 3}
    with pytest.raises(ValidationError, match="jars"):
        model.model_validate({"jars": "some"})


async def test_a_stand_in_does_nothing_itself(plugins: Path) -> None:
    kind = AgentRegistry(plugins, apart=True).get("cellar")
    with pytest.raises(AgentError, match="'cellar' runs in a process of its own"):
        await kind(AgentContext()).analyze()


def test_a_plugin_that_is_to_run_here_is_imported_here(plugins: Path) -> None:
    registry = AgentRegistry(plugins, apart=True)
    real = registry.load("pantry")
    assert real.__module__ == f"{PREFIX}.pantry"
    assert registry.load("pantry") is real
    assert registry.load("matchmaker") is registry.get("matchmaker")
    with pytest.raises(AgentNotFound):
        registry.load("attic")


def test_its_templates_are_found_where_it_brought_them(plugins: Path) -> None:
    here, apart = AgentRegistry(plugins).get("pantry"), AgentRegistry(plugins, apart=True).get("pantry")
    assert shipped_folders(apart) == shipped_folders(here)


GOOD = """
    from agents import BaseAgent
    class {name}(BaseAgent):
        async def analyze(self):
            return []
"""
_WRITE = """
    try:
        os.write(fd, b'nonsense\\n')
    except OSError:
        pass
"""
BAD: dict[str, tuple[str, str]] = {
    "loops": ("while True: pass", "was killed by SIGXCPU|was not imported within 1 s"),
    "sleeps": ("import time; time.sleep(3600)", "it was not imported within 1 s"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
    "leaves": ("import os; os._exit(3)", "ended with exit code 3"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "swells": ("kept = bytearray(1 << 40)", "MemoryError"),
    "garbles": (f"import os, time\nfor fd in range(3, 9):{_WRITE}\ntime.sleep(3600)", "it disturbs the look"),
    "raises": ("1 / 0", "ZeroDivisionError"),
    "forks": ("import os, time\nif os.fork() == 0:\n  time.sleep(3600)\nimport ctypes; ctypes.string_at(0)",
              "was killed by SIGSEGV"),
}  # fmt: skip


def test_plugins_that_cannot_be_imported_are_left_out_with_the_reason_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standins, "LOOK_S", 1.0)
    texts = {name: text for name, (text, _) in BAD.items()}
    good = {name: GOOD.format(name=name.title()) for name in ("aaa", "mmm", "zzz")}
    folder = folder_with(tmp_path, **texts, **good)
    mark = tmp_path.name
    monkeypatch.setenv("PYTHON_MARK_OF_A_TEST", mark)
    began = time.monotonic()
    registry = AgentRegistry(folder, apart=True)
    assert registry.names() == ("aaa", "matchmaker", "mmm", "zzz")
    assert time.monotonic() - began < 30
    said = {Path(problem.split(" is left out")[0].split()[-1]).stem: problem for problem in registry.problems}
    assert said.keys() == BAD.keys()
    for name, (_, words) in BAD.items():
        assert re.search(words, said[name]), said[name]
    assert [process for process in psutil.process_iter() if _mark_of(process) == mark] == []


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PYTHON_MARK_OF_A_TEST")
    except psutil.Error:
        return None


def test_no_key_of_ours_is_in_the_environment_of_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLM_API_KEY", "CREDENTIALS_DIRECTORY", "PYTHON_TOKEN", "ASKFIRST_X", "AWS_SECRET"):
        monkeypatch.setenv(name, "sk-canary")
    spy = "import os\nfrom agents import AgentError\nraise AgentError(repr(dict(os.environ)))"
    problems = AgentRegistry(folder_with(tmp_path, spy=spy), apart=True).problems
    assert "PATH" in problems[0]
    assert "sk-canary" not in problems[0]


def test_a_plugin_that_cannot_be_asked_any_more_leaves_its_settings_unchecked_and_says_so(
    plugins: Path,
) -> None:
    kind = AgentRegistry(plugins, apart=True).get("pantry")
    (plugins / "pantry.py").write_text("import os; os._exit(1)")
    with pytest.raises(AgentSettingsError, match=r"boards: could not be checked: .* exit code 1"):
        AgentConfig.from_table("pantry", {"boards": 4}, kind)


def test_a_folder_that_others_can_write_to_is_not_looked_at(plugins: Path) -> None:
    plugins.chmod(0o777)
    registry = AgentRegistry(plugins, apart=True)
    assert registry.names() == ("matchmaker",)
    assert "chmod go-w" in registry.problems[0]
    assert AgentRegistry(plugins / "nowhere", apart=True).problems == ()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, "x", None, True], "b": {"c": (1, 2)}},
        {"when": datetime(2026, 3, 1, 12, tzinfo=UTC), "day": date(2026, 3, 1), "at": time_of_day(7, 30)},
        {"for": timedelta(minutes=5), "in": Path("/x"), "$": "a key of that name"},
    ],
)
def test_values_of_a_configuration_come_over_as_they_are(value: Any) -> None:
    assert untagged(tagged(value)) == value


def test_an_agent_that_is_gone_is_an_error(plugins: Path) -> None:
    registry = AgentRegistry(plugins, apart=True)
    with pytest.raises(AgentNotFound, match="did you mean 'pantry'"):
        registry.entry("pantri")
    with pytest.raises(AgentLoadError):
        AgentRegistry(plugins).add(object)  # type: ignore[arg-type]
