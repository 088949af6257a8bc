"""[llm.backends.NAME] and [llm.routes]: what a named backend takes from [llm], and what cannot work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.base import BaseAgent
from agents.proposal import Proposal
from daemon.errors import SettingsError
from daemon.runtime import open_runtime
from daemon.selection import choose_model, health_of, open_client
from daemon.settings import DaemonSettings, Settings, all_keys, load_settings, routes_of
from daemon.settings.explain import explain, schema
from llm import LLMConfig, get_llm_client
from llm.router import RoutedClient
from llm.routes import Routes
from tests.support.fake_ollama import FakeOllama

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "config" / "askfirst.toml"
KEY, OTHER_KEY = "sk-first-0123456789abcdef", "sk-other-0123456789abcdef"

TWO = """
[llm]
timeout = 50.0
temperature = 0.2

[llm.backends.small]
backend = "ollama"
model = "qwen2.5:1.5b"
timeout = 20.0
escalate = "big"

[llm.backends.big]
backend = "remote"
model = "gpt-4"

[llm.routes]
default = ["small", "big"]

[llm.routes.agents]
matchmaker = ["big"]

[llm.routes.tasks]
title = ["small"]

[agents.matchmaker]
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "askfirst.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def routes(path: Path, **environ: str) -> Routes:
    found = routes_of(load_settings(path, environ), environ)
    assert found is not None
    return found


def problems(path: Path, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ)
    return [str(problem).replace(f"{path}", "askfirst.toml") for problem in caught.value.problems]


def warnings(path: Path, **environ: str) -> list[str]:
    settings = load_settings(path, environ)
    return [str(warning).replace(f"{path}", "askfirst.toml") for warning in settings.warnings]


def test_the_tables_become_routes(write: Write, tmp_path: Path) -> None:
    found = routes(write(TWO), STATE_DIRECTORY=str(tmp_path / "data"))
    assert (found.default, found.agents, found.tasks) == (
        ("small", "big"),
        {"matchmaker": ("big",)},
        {"title": ("small",)},
    )
    assert found.escalate == {"small": "big"}
    small, big = found.backends["small"], found.backends["big"]
    assert (small.backend, small.model, small.timeout, small.temperature) == (
        "ollama",
        "qwen2.5:1.5b",
        20.0,
        0.2,
    )
    assert (big.backend, big.model, big.timeout, big.temperature) == ("remote", "gpt-4", 50.0, 0.2)
    assert big.cache_dir == small.cache_dir == str(tmp_path / "data" / "llm_cache")


def test_without_routes_all_backends_are_asked_in_the_file_s_order(write: Write) -> None:
    found = routes(write('[llm.backends.b]\nbackend = "ollama"\n[llm.backends.a]\nbackend = "remote"\n'))
    assert found.default == ("b", "a")


def test_without_backends_there_are_no_routes(write: Write) -> None:
    assert routes_of(load_settings(write("[llm]\n"), {}), {}) is None


def test_a_backend_in_the_environment_is_used_alone_and_auto_is_none(write: Write) -> None:
    path = write(TWO)
    assert routes_of(load_settings(path, {}), {"LLM_BACKEND": "mock"}) is None
    assert routes_of(load_settings(path, {}), {"LLM_BACKEND": "auto"}) is not None


def test_model_and_address_are_taken_from_the_llm_table_only_by_backends_of_its_kind(write: Write) -> None:
    found = routes(
        write(
            '[llm]\nbackend = "ollama"\nmodel = "llama3.2:1b"\napi_base = "http://pi.lan:11434"\n'
            "seed = 7\n"
            "[llm.backends.near]\n"
            '[llm.backends.far]\nbackend = "remote"\n'
        )
    )
    near, far = found.backends["near"], found.backends["far"]
    assert (near.backend, near.model, near.api_base) == ("ollama", "llama3.2:1b", "http://pi.lan:11434")
    assert (far.backend, far.model, far.api_base) == ("remote", "gpt-4", None)
    assert near.seed == far.seed == 7


def test_the_environment_wins_over_the_llm_table_and_a_backend_s_own_value_over_both(write: Write) -> None:
    found = routes(write(TWO), LLM_TIMEOUT="40", LLM_MAX_TOKENS="99")
    assert [config.timeout for config in found.backends.values()] == [20.0, 40.0]
    assert [config.max_tokens for config in found.backends.values()] == [99, 99]


def test_the_budget_of_the_llm_table_is_for_all_backends_together(write: Write) -> None:
    found = routes(
        write(
            '[llm]\nbudget = "5 usd/month"\n'
            '[llm.backends.near]\nbackend = "ollama"\n'
            '[llm.backends.far]\nbackend = "remote"\nbudget = "2 usd/month"\n'
        )
    )
    assert found.budget == "5 usd/month"
    assert [config.budget for config in found.backends.values()] == [None, "2 usd/month"]


def test_relative_paths_of_a_backend_start_at_the_file_s_folder(write: Write, tmp_path: Path) -> None:
    found = routes(write('[llm.backends.a]\nbackend = "mlx"\nadapter_path = "adapters/mine"\n'))
    assert found.backends["a"].adapter_path == str(tmp_path / "adapters" / "mine")


# Keys.


def test_a_remote_backend_without_a_key_takes_that_of_the_llm_table_and_others_do_not(write: Write) -> None:
    found = routes(write(TWO), LLM_API_KEY=KEY)
    assert found.backends["big"].api_key == KEY
    assert found.backends["small"].api_key is None


def test_a_backend_s_own_key_file_wins(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(f"{OTHER_KEY}\n")
    text = TWO.replace('model = "gpt-4"', 'model = "gpt-4"\napi_key_file = "other"')
    path = write(text)
    settings = load_settings(path, {"LLM_API_KEY": KEY})
    found = routes_of(settings, {"LLM_API_KEY": KEY})
    assert found is not None
    assert found.backends["big"].api_key == OTHER_KEY
    assert set(all_keys(settings, {"LLM_API_KEY": KEY})) == {KEY, OTHER_KEY}


def test_one_key_never_goes_to_two_services(write: Write, tmp_path: Path) -> None:
    text = (
        '[llm.backends.a]\nbackend = "remote"\napi_base = "https://one.example/v1"\n'
        '[llm.backends.b]\nbackend = "remote"\napi_base = "https://one.example/v2"\n'
        '[llm.backends.c]\nbackend = "remote"\nmodel = "claude-sonnet-5"\n'
    )
    assert problems(write(text), LLM_API_KEY=KEY) == [
        (
            "askfirst.toml:7: llm.backends.c: the key of [llm] goes to one.example already; "
            "give this backend an api_key_file of its own"
        )
    ]
    assert load_settings(write(text), {})
    (tmp_path / "llm_api_key").write_text(KEY)
    assert len(problems(write(text), CREDENTIALS_DIRECTORY=str(tmp_path))) == 1


def test_a_key_is_in_no_problem_and_no_explanation(write: Write) -> None:
    text = TWO.replace('model = "gpt-4"', f'model = "gpt-4"\napi_key = "{KEY}"')
    path = write(text)
    path.chmod(0o644)
    assert any("others on this machine can read the key" in warning for warning in warnings(path))
    settings = load_settings(path, {})
    assert KEY not in repr(explain(settings)) + repr(settings)
    assert all_keys(settings, {}) == [KEY]
    wrong = write(text.replace(f'"{KEY}"', f'["{KEY}"]'))
    assert KEY not in "".join(problems(wrong))


# What cannot work.


def test_every_problem_is_told_with_its_line_and_key(write: Write) -> None:
    text = """
[llm.backends.small]
modle = "x"
temperature = 9.0

[llm.backends.big]
backend = "remote"
retries = "many"
"""
    found = problems(write(text))
    assert found == [
        "askfirst.toml:3: llm.backends.small.modle: unknown setting; did you mean 'model'?",
        "askfirst.toml:4: llm.backends.small.temperature: must be a number from 0.0 to 2.0, not 9.0",
        'askfirst.toml:8: llm.backends.big.retries: must be a whole number, not "many"',
    ]


def test_what_does_not_go_together_is_told_with_its_line_and_key(write: Write) -> None:
    text = """
[llm.backends.small]
escalate = "huge"

[llm.backends.Big]
backend = "auto"

[llm.backends.far]
backend = "remote"
api_key_file = "nowhere"

[llm.routes]
default = ["smal"]

[llm.routes.tasks]
title = []
"""
    path = write(text)
    found = problems(path)
    assert [line.split(": ", 2)[:2] for line in found] == [
        ["askfirst.toml:2", "llm.backends.small"],
        ["askfirst.toml:3", "llm.backends.small.escalate"],
        ["askfirst.toml:5", "llm.backends.Big"],
        ["askfirst.toml:6", "llm.backends.Big.backend"],
        ["askfirst.toml:10", "llm.backends.far.api_key_file"],
        ["askfirst.toml:13", "llm.routes.default"],
        ["askfirst.toml:16", "llm.routes.tasks.title"],
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[llm.routes]\ndefault = ["a"]', "1: llm.routes: there are no backends to route to"),
        ("[llm]\nbackends = 3", "2: llm.backends: must be a table, not 3"),
        ("[llm.backends]\nsmall = 3", "2: llm.backends.small: must be a table, not 3"),
        (
            '[llm.backends.a]\nbackend = "ollama"\n[llm.routes]\ndefault = "a"',
            '4: llm.routes.default: must be a list such as ["one", "two"], not "a"',
        ),
        (
            '[llm.backends.a]\nbackend = "ollama"\n[llm.routes.agents]\nx = [1]',
            "4: llm.routes.agents.x[0]: must be a text in quotes, not 1",
        ),
        (
            '[llm.backends.a]\nbackend = "ollama"\n[llm.routes]\nagent = {}',
            "4: llm.routes.agent: unknown setting; did you mean 'agents'?",
        ),
        (
            '[llm.backends.a]\nbackend = "mock"\n[llm.backends.b]\nbackend = "ollama"',
            "2: llm.backends.a.backend: the mock backend cannot stand beside real ones",
        ),
    ],
)
def test_a_mistake_is_told_where_it_stands(write: Write, text: str, problem: str) -> None:
    (found,) = problems(write(text))
    assert found.startswith(f"askfirst.toml:{problem}")


def test_what_works_but_is_not_meant_like_that_is_warned_about(write: Write) -> None:
    path = write(TWO.replace("matchmaker = [", "matchmakr = ["))
    assert warnings(path, LLM_MODEL="gemma3") == [
        (
            "askfirst.toml:20: llm.routes.agents.matchmakr: there is no table [agents.matchmakr], "
            "so this route is never taken; did you mean 'matchmaker'?"
        ),
        (
            "LLM_MODEL: llm.model: no backend of [llm.backends] takes it; "
            "set LLM_BACKEND too, to use that one alone"
        ),
    ]
    assert warnings(write(TWO), LLM_MODEL="m", LLM_BACKEND="mock") == []


# What a person and an editor are told.


def test_explain_knows_where_each_value_of_a_backend_came_from(write: Write) -> None:
    path = write(TWO)
    settings = load_settings(path, {"LLM_SEED": "7"})
    found = {one.key: one for one in explain(settings, "llm.backends.big")}
    assert (found["llm.backends.big.model"].value, found["llm.backends.big.model"].origin) == (
        "gpt-4",
        f"{path}:14",
    )
    assert (found["llm.backends.big.timeout"].value, found["llm.backends.big.timeout"].origin) == (
        "50.0",
        f"{path}:3",
    )
    assert (found["llm.backends.big.seed"].value, found["llm.backends.big.seed"].origin) == ("7", "LLM_SEED")
    assert (found["llm.backends.big.top_p"].value, found["llm.backends.big.top_p"].origin) == (
        "0.9",
        "default",
    )
    (default,) = explain(settings, "llm.routes.default")
    assert (default.value, default.origin) == ('["small", "big"]', f"{path}:17")
    (agent,) = explain(settings, "llm.routes.agents.matchmaker")
    assert agent.value == '["big"]'


def test_explain_does_not_say_that_a_backend_of_another_kind_takes_the_model(write: Write) -> None:
    path = write('[llm]\nbackend = "ollama"\nmodel = "m"\n[llm.backends.far]\nbackend = "remote"\n')
    (model,) = explain(load_settings(path, {}), "llm.backends.far.model")
    assert (model.value, model.origin) == ("not set", "default")


def test_the_schema_knows_the_tables() -> None:
    import fastjsonschema

    check = fastjsonschema.compile(schema())
    check({"llm": {"backends": {"a": {"backend": "ollama", "escalate": "b"}}, "routes": {"default": ["a"]}}})
    for bad in (
        {"backends": {"a": {"modle": "x"}}},
        {"routes": {"defalt": []}},
        {"routes": {"tasks": {"t": "a"}}},
    ):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check({"llm": bad})


def test_the_example_in_the_shipped_file_works(write: Write, tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text(KEY)
    text = re.sub(r"^#   ?", "", SHIPPED.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith("#   askfirst")]
    start, end = lines.index("[llm.backends.small]"), lines.index('title = ["small"]')
    example = "\n".join(line for line in lines[start : end + 1] if not line.startswith("# "))
    found = routes(write(example))
    assert found.default == ("small", "big")
    assert found.backends["big"].api_key == KEY


# What is chosen.


async def test_the_choice_says_which_backends_there_are(write: Write) -> None:
    selection = await choose_model(load_settings(write(TWO), {}), {})
    assert selection.routes is not None
    assert selection.config == selection.routes.backends["small"]
    assert selection.reason == (
        "The configuration names the backends small (ollama, qwen2.5:1.5b), big (remote, gpt-4). "
        "Asked is small, then big, unless a route says otherwise."
    )
    client = open_client(selection)
    assert isinstance(client, RoutedClient)
    await client.aclose()


async def test_the_choice_says_that_the_environment_s_backend_is_used_alone(write: Write) -> None:
    environ = {"LLM_BACKEND": "mock"}
    selection = await choose_model(load_settings(write(TWO), environ), environ)
    assert selection.routes is None
    assert selection.config is not None
    assert selection.config.backend == "mock"
    assert selection.reason.startswith("LLM_BACKEND says mock, so it is used")
    assert selection.reason.endswith("The backends of the configuration (small, big) are not used.")


async def test_a_program_may_bring_routes_of_its_own(tmp_path: Path) -> None:
    mock = LLMConfig(backend="mock", enable_cache=False)
    settings = Settings(daemon=DaemonSettings(data_dir=tmp_path))
    async with open_runtime(settings, llm_config=Routes(backends={"a": mock, "b": mock})) as runtime:
        assert isinstance(runtime.llm, RoutedClient)
        assert runtime.selection.reason == "The caller names the backends a (mock, mock), b (mock, mock)."
    assert runtime.llm.is_closed


async def test_the_daemon_runs_its_agents_over_the_routes_of_the_configuration(
    write: Write, tmp_path: Path
) -> None:
    class TitleAgent(BaseAgent):
        """Asks for a title, and for something else."""

        async def analyze(self) -> list[Proposal]:
            answers = [await self.use_llm("A title?", task="title"), await self.use_llm("And?")]
            self.context.notes.append(" ".join(answer.backend for answer in answers))
            return []

    text = (
        f'[daemon]\ndata_dir = "{tmp_path}/data"\n'
        '[llm.backends.one]\nbackend = "mock"\n[llm.backends.two]\nbackend = "mock"\n'
        '[llm.routes]\ntasks = { title = ["two"] }\n'
    )
    settings = await asyncio.to_thread(load_settings, write(text), {})
    async with open_runtime(settings, agents=[TitleAgent]) as runtime:
        result = await runtime.runner.run("title")
    assert result.notes == ("two one",)
    assert result.backend == "one"


async def test_the_health_of_each_backend_is_known_by_its_name() -> None:
    async with FakeOllama() as server:
        near = LLMConfig(backend="ollama", api_base=server.url, enable_cache=False)
        far = near.with_values(api_base="http://127.0.0.1:1")
        async with get_llm_client(Routes(backends={"near": near, "far": far})) as client:
            assert await health_of(client) == {"near": True, "far": False}
        async with get_llm_client(near) as client:
            assert await health_of(client) == {"ollama": True}
