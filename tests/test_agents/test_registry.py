"""AgentRegistry: built-in agents, entry points and plugin files, each found by name and loaded when used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.errors import AgentLoadError, AgentNotFound
from agents.proposal import Proposal
from agents.registry import AgentEntry, AgentRegistry

MATCHMAKER = AgentEntry("matchmaker", "built-in", "agents.builtin.matchmaker.agent:Matchmaker")

AGENT = """
    from agents import BaseAgent, Proposal

    class {name}(BaseAgent):
        "An agent from a file."
        async def analyze(self) -> list[Proposal]:
            return []
"""

Write = Callable[..., Path]
Install = Callable[..., None]


class Given(BaseAgent):
    """An agent given in code."""

    async def analyze(self) -> list[Proposal]:
        return []


class Abstract(BaseAgent):
    """An agent without analyze."""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def write(plugins: Path) -> Iterator[Write]:
    """Writes a plugin file as its owner would, whatever the umask of the test run is."""

    def write(path: str, code: str) -> Path:
        file = plugins / path
        file.parent.mkdir(mode=0o755, exist_ok=True)
        file.write_text(dedent(code), encoding="utf-8")
        file.chmod(0o644)
        file.parent.chmod(0o755)
        return file

    yield write
    for name in [name for name in sys.modules if name.startswith("_askfirst_plugins")]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with entry points and one module into a folder on `sys.path`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def install(distribution: str, points: dict[str, str], module: str = "", code: str = "") -> None:
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("[askfirst.agents]\n" + "\n".join(lines) + "\n")
        if module:
            (site / f"{module}.py").write_text(dedent(code), encoding="utf-8")

    yield install
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_built_in_agents_are_there_without_anything_else() -> None:
    registry = AgentRegistry()
    assert registry.entries() == (MATCHMAKER,)
    assert registry.names() == ("matchmaker",)
    assert registry.problems == ()


def test_every_built_in_agent_can_be_loaded_by_its_name() -> None:
    registry = AgentRegistry()
    assert [registry.get(name).name for name in registry.names()] == ["matchmaker"]


def test_a_plugin_folder_that_does_not_exist_has_no_agents(tmp_path: Path) -> None:
    registry = AgentRegistry(tmp_path / "nowhere")
    assert registry.names() == ("matchmaker",)
    assert registry.problems == ()


def test_an_unknown_agent_leads_to_the_nearest_name_or_to_all_of_them() -> None:
    with pytest.raises(AgentNotFound, match="did you mean 'matchmaker'"):
        AgentRegistry().get("matchmakr")
    with pytest.raises(AgentNotFound, match="the agents are matchmaker"):
        AgentRegistry().get("pantry")


def test_listing_the_built_in_agents_and_entry_points_imports_none_of_them(
    tmp_path: Path, install: Install
) -> None:
    install("pantry-agent", {"pantry": "pantry_of_a_test:Pantry"}, "pantry_of_a_test", "raise RuntimeError")
    code = """
        import sys
        from pathlib import Path
        from agents.registry import AgentRegistry
        print(AgentRegistry(Path("nowhere")).names())
        print([name for name in sys.modules if "builtin." in name or "pantry" in name])
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["('matchmaker', 'pantry')", "[]"], done.stderr


def test_an_entry_point_of_an_installed_distribution_is_an_agent(install: Install) -> None:
    install(
        "pantry-agent", {"pantry": "pantry_of_a_test:Pantry"}, "pantry_of_a_test", AGENT.format(name="Pantry")
    )
    registry = AgentRegistry()
    assert registry.entries()[1] == AgentEntry("pantry", "entry point", "pantry_of_a_test:Pantry")
    agent = registry.get("pantry")
    assert (agent.name, agent.__module__) == ("pantry", "pantry_of_a_test")
    assert registry.get("pantry") is agent


def test_an_entry_point_may_name_extras_and_a_class_inside_a_class(install: Install) -> None:
    code = dedent(AGENT.format(name="Pantry")) + "\nclass Home:\n    Inner = Pantry\n"
    install("pantry-agent", {"pantry": "pantry_of_a_test:Home.Inner [mail]"}, "pantry_of_a_test", code)
    assert AgentRegistry().get("pantry").name == "pantry"


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("pantry_of_a_test:Pantry", "raise RuntimeError('no fridge')", "RuntimeError: no fridge"),
        ("pantry_of_a_test:Pantry", "raise SystemExit(3)", "SystemExit: 3"),
        ("pantry_of_a_test:Pantry", "x = 1", "has no attribute 'Pantry'"),
        ("pantry_of_a_test:Pantry", "Pantry = 7", "is no agent"),
        ("pantry_of_a_test:Pantry", "class Pantry: ...", "is no agent"),
        ("pantry_of_a_test:Pantry", "from agents import BaseAgent as Pantry", "is no agent"),
        ("not_there_at_all:Pantry", "", "No module named 'not_there_at_all'"),
        ("pantry_of_a_test", "x = 1", "cannot be loaded"),
        ("pantry_of_a_test:Larder", AGENT.format(name="Larder"), "calls itself 'larder'"),
    ],
)
def test_an_entry_point_that_leads_to_no_agent_is_an_error_when_it_is_used(
    install: Install, target: str, code: str, said: str
) -> None:
    install("pantry-agent", {"pantry": target}, "pantry_of_a_test", code)
    registry = AgentRegistry()
    assert "pantry" in registry.names()
    with pytest.raises(AgentLoadError) as caught:
        registry.get("pantry")
    assert said in str(caught.value)
    assert "'pantry'" in str(caught.value)


def test_an_entry_point_whose_name_is_no_agents_name_is_left_out(install: Install) -> None:
    install("pantry-agent", {"My Pantry": "pantry_of_a_test:Pantry"})
    registry = AgentRegistry()
    assert registry.names() == ("matchmaker",)
    assert "'My Pantry'" in registry.problems[0]


def test_a_name_that_is_taken_stays_with_the_first_and_the_second_is_told(install: Install) -> None:
    install("other-matchmaker", {"matchmaker": "theirs:Matchmaker"})
    install("pantry-one", {"pantry": "one:Pantry"})
    install("pantry-two", {"pantry": "two:Pantry"})
    registry = AgentRegistry()
    assert registry.names() == ("matchmaker", "pantry")
    assert registry.entries()[0] == MATCHMAKER
    assert len(registry.problems) == 2
    assert "'matchmaker' of the entry point theirs:Matchmaker is left out" in registry.problems[0]


def test_a_file_of_the_plugin_folder_is_an_agent(plugins: Path, write: Write) -> None:
    file = write("pantry.py", AGENT.format(name="PantryAgent"))
    registry = AgentRegistry(plugins)
    assert registry.entries() == (MATCHMAKER, AgentEntry("pantry", "plugin", str(file)))
    assert registry.problems == ()
    agent = registry.get("pantry")
    assert agent.description == "An agent from a file."
    assert registry.get("pantry") is agent


async def test_an_agent_from_a_file_works(plugins: Path, write: Write) -> None:
    write(
        "pantry.py",
        """
        from dataclasses import dataclass

        from agents import BaseAgent

        @dataclass
        class Item:
            name: str

        class Pantry(BaseAgent):
            async def analyze(self):
                item = Item("milk")
                title = f"Use the {item.name}"
                return [self.propose("use", title, explanation="", payload={}, fingerprint="milk")]
        """,
    )
    agent = AgentRegistry(plugins).get("pantry")(AgentContext())
    assert [p.title for p in await agent.analyze()] == ["Use the milk"]


def test_one_file_may_define_several_agents_and_bases_are_none(plugins: Path, write: Write) -> None:
    write(
        "house.py",
        """
        from agents import BaseAgent

        class Room(BaseAgent):
            "Only a base: it has no analyze."

        class Kitchen(Room):
            async def analyze(self):
                return []

        class Cellar(Room):
            async def analyze(self):
                return []

        Basement = Cellar
        """,
    )
    registry = AgentRegistry(plugins)
    assert registry.names() == ("cellar", "kitchen", "matchmaker")
    assert registry.problems == ()


def test_an_agent_that_a_file_only_imports_is_not_its_own(
    plugins: Path, write: Write, install: Install
) -> None:
    install("pantry-agent", {}, "pantry_of_a_test", AGENT.format(name="Pantry"))
    write("larder.py", "from pantry_of_a_test import Pantry\n" + dedent(AGENT.format(name="Larder")))
    assert AgentRegistry(plugins).names() == ("larder", "matchmaker")


def test_a_folder_with_an_init_file_is_one_plugin(plugins: Path, write: Write) -> None:
    write("larder/words.py", "TITLE = 'Use the milk'\n")
    write("larder/parts.py", AGENT.format(name="LarderAgent"))
    write("larder/__init__.py", "from .parts import LarderAgent\nfrom .words import TITLE\n")
    registry = AgentRegistry(plugins)
    assert registry.entries()[0] == AgentEntry("larder", "plugin", str(plugins / "larder"))
    assert registry.get("larder").__module__ == "_askfirst_plugins.larder.parts"


def test_files_that_begin_with_an_underscore_or_a_dot_and_other_files_are_left_alone(
    plugins: Path, write: Write
) -> None:
    for name in ("_draft.py", ".hidden.py", "notes.txt", "data/readme.md", "__pycache__/x.py"):
        write(name, "raise RuntimeError('must not be imported')")
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker",)
    assert registry.problems == ()


def test_plugins_are_not_imported_for_an_agent_that_comes_before_them(
    plugins: Path, write: Write, install: Install
) -> None:
    marker = plugins.parent / "imported"
    write("pantry.py", f"open({str(marker)!r}, 'w').close()\n" + dedent(AGENT.format(name="Pantry")))
    install(
        "larder-agent", {"larder": "larder_of_a_test:Larder"}, "larder_of_a_test", AGENT.format(name="Larder")
    )
    registry = AgentRegistry(plugins)
    registry.get("larder")
    assert not marker.exists()
    registry.get("pantry")
    assert marker.exists()


def test_plugins_are_imported_once(plugins: Path, write: Write) -> None:
    marker = plugins.parent / "imported"
    write(
        "pantry.py",
        f"with open({str(marker)!r}, 'a') as f: f.write('x')\n" + dedent(AGENT.format(name="Pantry")),
    )
    registry = AgentRegistry(plugins)
    for _ in range(2):
        registry.names()
        registry.get("pantry")
        assert registry.problems == ()
    assert marker.read_text() == "x"


def test_a_plugin_is_never_found_through_the_import_path(plugins: Path, write: Write) -> None:
    write("json.py", AGENT.format(name="Pantry"))
    write("llm.py", AGENT.format(name="Larder"))
    before = list(sys.path)
    registry = AgentRegistry(plugins)
    assert registry.get("pantry").__module__ == "_askfirst_plugins.json"
    assert sys.path == before
    import json

    import llm

    assert str(plugins) not in f"{json.__file__} {llm.__file__}"


def test_one_plugin_cannot_import_another(plugins: Path, write: Write) -> None:
    write("larder.py", AGENT.format(name="Larder"))
    write("pantry.py", "from . import words\n")
    write("words.py", "")
    registry = AgentRegistry(plugins)
    assert registry.names() == ("larder", "matchmaker")
    assert "cannot import name 'words'" in registry.problems[0]


def test_two_registries_load_their_own_plugin_of_the_same_name(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "pantry").mkdir(parents=True)
        (folder / "pantry" / "words.py").write_text(f"NUMBER = {number}\n")
        code = "from .words import NUMBER\n" + dedent(AGENT.format(name="Pantry")) + "    number = NUMBER\n"
        (folder / "pantry" / "__init__.py").write_text(code)
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o022)
        found.append(AgentRegistry(folder).get("pantry"))
    assert [agent.number for agent in found] == [1, 2]  # type: ignore[attr-defined]


def test_an_edit_is_seen_however_soon_it_follows(plugins: Path, write: Write) -> None:
    """Python's own cache takes a file of the same size and second for unchanged."""
    file = write("pantry.py", AGENT.format(name="Pantry"))
    AgentRegistry(plugins).names()
    times = file.stat()
    write("pantry.py", AGENT.format(name="Larder"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert AgentRegistry(plugins).names() == ("larder", "matchmaker")
    assert not (plugins / "__pycache__").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no fridge')", "line 1: RuntimeError: no fridge"),
        ("\n\nimport not_there_at_all", "line 3: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("class Pantry(:", "pantry.py, line 1"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("x = 1", "defines no agent"),
        ("from agents import BaseAgent\nclass P(BaseAgent): ...", "defines no agent"),
        ("from agents import BaseAgent\nclass P(BaseAgent):\n  name = 'Not A Name'", "line 2: AgentError"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_a_problem_and_no_crash(
    plugins: Path, write: Write, code: str, said: str
) -> None:
    write("larder.py", AGENT.format(name="Larder"))
    file = write("pantry.py", code)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("larder", "matchmaker")
    (problem,) = registry.problems
    assert problem.startswith(f"the plugin {file} is left out: ")
    assert said in problem
    assert "_askfirst_plugins.pantry" not in sys.modules


def test_a_plugin_that_is_no_text_is_a_problem_and_no_crash(plugins: Path, write: Write) -> None:
    write("pantry.py", "").write_bytes(b"\x00\xff\x00")
    (problem,) = AgentRegistry(plugins).problems
    assert "pantry.py is left out: " in problem


def test_asking_for_an_agent_whose_plugin_failed_says_why(plugins: Path, write: Write) -> None:
    write("pantry.py", "raise RuntimeError('no fridge')")
    with pytest.raises(AgentNotFound, match="no fridge"):
        AgentRegistry(plugins).get("pantry")


def test_a_plugin_cannot_take_the_name_of_a_built_in_agent(plugins: Path, write: Write) -> None:
    file = write("mine.py", AGENT.format(name="Matchmaker"))
    registry = AgentRegistry(plugins)
    assert registry.entries() == (MATCHMAKER,)
    (problem,) = registry.problems
    assert problem.startswith(f"the agent 'matchmaker' of the plugin {file} is left out: ")
    assert problem.endswith("the built-in agents.builtin.matchmaker.agent:Matchmaker has that name")


def test_two_plugins_with_one_name_are_one_agent_and_one_problem(plugins: Path, write: Write) -> None:
    first = write("a.py", AGENT.format(name="Pantry"))
    second = write("b.py", AGENT.format(name="Pantry"))
    registry = AgentRegistry(plugins)
    assert registry.entries()[1].location == str(first)
    assert registry.problems == (
        f"the agent 'pantry' of the plugin {second} is left out: the plugin {first} has that name",
    )


def test_a_file_and_a_folder_of_one_name_are_not_mixed_up(plugins: Path, write: Write) -> None:
    write("pantry/__init__.py", AGENT.format(name="Pantry"))
    write("pantry.py", AGENT.format(name="Larder"))
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker", "pantry")
    assert "has the same name; rename one of them" in registry.problems[0]


def test_a_file_whose_name_is_no_modules_name_is_told(plugins: Path, write: Write) -> None:
    write("pantry v2.py", AGENT.format(name="Pantry"))
    write("my-larder.py", AGENT.format(name="Larder"))
    registry = AgentRegistry(plugins)
    assert registry.names() == ("larder", "matchmaker")
    assert "pantry v2.py is left out: its name may have letters" in registry.problems[0]


@pytest.mark.parametrize(("mode", "who"), [(0o664, "its group"), (0o646, "everybody"), (0o666, "everybody")])
def test_a_file_that_others_can_write_to_is_refused(plugins: Path, write: Write, mode: int, who: str) -> None:
    file = write("pantry.py", AGENT.format(name="Pantry"))
    file.chmod(mode)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker",)
    (problem,) = registry.problems
    assert problem.startswith(f"the plugin {file} is left out: {who} can write to {file}, ")
    assert problem.endswith(f"and it would run with your rights; use: chmod go-w {file}")


def test_the_command_that_the_refusal_names_helps(plugins: Path, write: Write) -> None:
    write("pantry.py", AGENT.format(name="Pantry")).chmod(0o666)
    (problem,) = AgentRegistry(plugins).problems
    subprocess.run(problem.rpartition("use: ")[2].split(), check=True, timeout=10)
    assert AgentRegistry(plugins).names() == ("matchmaker", "pantry")


def test_a_package_with_one_file_that_others_can_write_to_is_refused(plugins: Path, write: Write) -> None:
    write("pantry/__init__.py", AGENT.format(name="Pantry"))
    write("pantry/words.py", "").chmod(0o666)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker",)
    assert "words.py" in registry.problems[0]


def test_a_folder_that_others_can_write_to_is_refused_with_all_its_plugins(
    plugins: Path, write: Write
) -> None:
    write("pantry.py", AGENT.format(name="Pantry"))
    plugins.chmod(0o777)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker",)
    assert registry.problems[0].startswith(f"the plugin folder {plugins} is left out: everybody can write")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_that_belongs_to_somebody_else_is_refused(plugins: Path, write: Write) -> None:
    file = write("pantry.py", AGENT.format(name="Pantry"))
    os.chown(file, 12345, -1)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("matchmaker",)
    assert f"{file} belongs to user 12345" in registry.problems[0]


def test_a_file_that_leads_nowhere_or_is_none_is_told(plugins: Path, write: Write) -> None:
    write("larder.py", AGENT.format(name="Larder"))
    (plugins / "gone.py").symlink_to(plugins / "nowhere")
    os.mkfifo(plugins / "pipe.py", 0o600)
    registry = AgentRegistry(plugins)
    assert registry.names() == ("larder", "matchmaker")
    gone, pipe = registry.problems
    assert "gone.py is left out: No such file" in gone
    assert "pipe.py is neither a file nor a folder" in pipe


def test_a_plugin_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "plugins").write_text("")
    (problem,) = AgentRegistry(tmp_path / "plugins").problems
    assert "plugins is left out: Not a directory" in problem


def test_a_class_given_in_code_is_an_agent() -> None:
    registry = AgentRegistry()
    registry.add(Given)
    registry.add(Given)
    assert registry.get("given") is Given
    assert registry.names() == ("given", "matchmaker")
    entry = registry.entries()[0]
    assert (entry.origin, entry.location) == ("code", f"{__name__}:Given")
    assert registry.problems == ()


def test_a_class_given_in_code_is_the_one_that_is_meant_and_the_hidden_one_is_told() -> None:
    mine = type("Matchmaker", (Given,), {})
    registry = AgentRegistry()
    registry.add(mine)
    assert registry.get("matchmaker") is mine
    assert registry.names() == ("matchmaker",)
    assert registry.problems == (
        f"the agent 'matchmaker' given in code stands in for the built-in at {MATCHMAKER.location}",
    )


def test_two_classes_of_one_name_cannot_both_be_given() -> None:
    registry = AgentRegistry()
    registry.add(Given)
    with pytest.raises(AgentLoadError, match="both called 'given'"):
        registry.add(type("Given", (Given,), {}))
    assert registry.get("given") is Given


@pytest.mark.parametrize(
    "what",
    [Abstract, BaseAgent, dict, "given", Given()],
    ids=("abstract", "base", "foreign", "name", "instance"),
)
def test_what_is_no_agent_cannot_be_given(what: object) -> None:
    with pytest.raises(AgentLoadError, match="is no agent"):
        AgentRegistry().add(what)  # type: ignore[arg-type]
