"""Settings come from defaults, file and environment, and say where each value came from and what is wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from agents.durations import FORMS
from agents.errors import AgentSettingsError
from agents.proposal import Approvers
from agents.registry import AgentRegistry
from daemon.errors import ExitCode, SettingsError, SettingsProblem
from daemon.settings import (
    BackendSettings,
    DaemonSettings,
    LLMSettings,
    ProposalSettings,
    Settings,
    WebSettings,
    load_settings,
)
from daemon.settings.environment import LLM_VARIABLES, SECTIONS, known_keys, variable_of
from daemon.settings.model import ApproverSettings
from daemon.settings.places import SYSTEM_CONFIG, config_places, default_data_dir
from llm import LLMConfig
from llm.config import ENVIRONMENT

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "config" / "askfirst.toml"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file and returns its path."""

    def written(text: str) -> Path:
        path = tmp_path / "askfirst.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def problems_of(path: Path | None, **environ: str) -> list[str]:
    """The problems as a person reads them, the file's folder left out."""
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ)
    assert caught.value.exit_code is ExitCode.CONFIGURATION
    return [str(problem).replace(f"{path}", "askfirst.toml") for problem in caught.value.problems]


class TestDefaults:
    def test_without_file_and_environment_the_defaults_hold(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        settings = load_settings(environ={"STATE_DIRECTORY": "/var/lib/askfirst"})
        assert settings.config_file is None
        assert settings.base_dir == tmp_path
        assert settings.daemon.data_dir == Path("/var/lib/askfirst")
        assert settings.daemon.plugin_dir == Path("/var/lib/askfirst/plugins")
        assert settings.prompts_dir == tmp_path / "prompts"
        assert (settings.web.host, settings.web.port, settings.web.enabled) == ("127.0.0.1", 8484, True)
        assert settings.proposals.expires_after == timedelta(hours=72)
        assert settings.enabled_agents == ()
        assert settings.warnings == ()

    def test_the_data_folder_is_the_one_systemd_gives_or_the_users_own(self) -> None:
        assert default_data_dir({"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}) == Path("/var/lib/one")
        own = default_data_dir({})
        assert own.name == "askfirst"
        assert own.is_relative_to(Path(os.environ["HOME"]))

    def test_settings_can_be_built_directly_and_are_checked_too(self, tmp_path: Path) -> None:
        settings = Settings(daemon=DaemonSettings(data_dir=tmp_path), web=WebSettings(port=0))
        assert settings.daemon.plugin_dir == tmp_path / "plugins"
        with pytest.raises(ValidationError):
            WebSettings(port=70_000)
        with pytest.raises(ValidationError):
            LLMSettings(temperature=9.0)
        with pytest.raises(ValidationError):
            settings.web.port = 1

    def test_what_is_left_out_of_the_llm_table_is_described_with_the_clients_own_default(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(LLMConfig)}
        for name, field in LLMSettings.model_fields.items():
            said = re.search(r"unset: ([\d.]+|true|false)$", field.description or "")
            if said:
                assert said[1] == str(defaults[name]).lower().removesuffix(".0"), name

    def test_the_llm_table_has_a_key_for_every_field_that_the_environment_has(self) -> None:
        own = set(LLMSettings.model_fields) - {"budgets", "backends", "routes"}  # those are of many names
        assert own == {*ENVIRONMENT, "api_key_file"} == set(LLM_VARIABLES)
        assert set(BackendSettings.model_fields) == {*own, "escalate"}


class TestFile:
    def test_the_shipped_file_works_as_it_stands_in_a_checkout(self) -> None:
        settings = load_settings(SHIPPED, {})
        assert settings.daemon.data_dir == ROOT / ".askfirst"
        assert settings.base_dir == ROOT / "config"
        assert settings.enabled_agents == ("matchmaker",)
        assert settings.agent_config("matchmaker").every == timedelta(hours=1)
        assert settings.agents["matchmaker"]["folder"] == "examples"
        assert "LLM_BACKEND" not in settings.llm_environ({})
        assert settings.warnings == ()

    @staticmethod
    def with_everything_on() -> str:
        """The shipped file with each commented setting switched on."""
        text = re.sub(r"^# (\w+ = )", r"\1", SHIPPED.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return text.replace('"api_key"', f'"{SHIPPED}"').replace('"otlp_headers"', f'"{SHIPPED}"')

    @staticmethod
    def matchmaker_fields() -> Mapping[str, FieldInfo]:
        settings = AgentRegistry().get("matchmaker").Settings
        assert settings is not None
        return settings.model_fields

    def test_the_shipped_file_names_every_setting_but_the_key_itself(self, write: Write) -> None:
        settings = load_settings(write(self.with_everything_on()), {})
        assert set(self.matchmaker_fields()) <= set(settings.agents["matchmaker"])
        keys = {(table, key) for table in SECTIONS for key in settings.sources.table[table]}
        assert {path[:2] for path in known_keys()} - keys == {
            ("llm", "api_key"),
            ("traces", "headers"),
            ("llm", "seed"),
            ("llm", "context_length"),
            ("llm", "max_reply_bytes"),
        }

    def test_a_commented_line_of_the_shipped_file_shows_the_default_or_is_an_example(
        self, write: Write
    ) -> None:
        on = load_settings(write(self.with_everything_on()), {})
        examples = {
            "model",
            "api_base",
            "api_key_file",
            "endpoint",
            "headers_file",
            "allowed_hosts",
            "ping_url",
            "pushgateway",
            "control_group",
            "log_levels",
            "timezone",
            "quiet",
            "max_runs_per_backend",
            "dir",
            "data_dir",
            "plugin_dir",
            "prompts_dir",
            "cache_dir",
            "keep_alive",
            "cache_max_age",
            "model_dir",
            "adapter_path",
            "embed_model",
            "api_version",
            "max_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "budget",
            "agents",
            "prices",
            "usage_file",
        }
        for path in known_keys():
            if path[-1] in examples or not sources_has(on, path):
                continue
            left_out = value_of(Settings(), path)
            default = getattr(LLMConfig(), str(path[1])) if left_out is None else left_out
            assert value_of(on, path) == default, path
        fields = self.matchmaker_fields()
        for key in fields.keys() - {"folder", "database"}:
            assert on.agents["matchmaker"][key] == fields[key].default, key

    def test_relative_paths_start_at_the_files_folder(self, write: Write, tmp_path: Path) -> None:
        path = write('[daemon]\ndata_dir = "state"\n[llm]\ncache_dir = "answers"\n')
        settings = load_settings(path, {})
        assert settings.daemon.data_dir == tmp_path / "state"
        assert settings.llm_environ({})["LLM_CACHE_DIR"] == str(tmp_path / "answers")

    def test_a_path_may_start_at_the_home_folder(self, write: Write) -> None:
        settings = load_settings(write('[daemon]\ndata_dir = "~/askfirst"\n'), {})
        assert settings.daemon.data_dir == Path(os.environ["HOME"]) / "askfirst"

    def test_every_problem_is_told_at_once_in_the_order_of_the_file(self, write: Write) -> None:
        path = write(
            '[web]\nport = "high"\nhosst = "x"\nenabled = "yes"\n'
            "[llm]\ntemperature = 9\ntop_p = true\n"
            '[daemon]\nlog_level = "loud"\nstop_grace = "soon"\nmax_concurrent_runs = 0\n'
            '[wbe]\n[agents]\nx = 1\n[agents.y]\nevery = "0s"\n'
        )
        assert problems_of(path, ASKFIRST_WEB__HOTS="x") == [
            'askfirst.toml:2: web.port: must be a whole number, not "high"',
            "askfirst.toml:3: web.hosst: unknown setting; did you mean 'host'?",
            'askfirst.toml:4: web.enabled: must be true or false, not "yes"',
            "askfirst.toml:6: llm.temperature: must be a number from 0.0 to 2.0, not 9.0",
            "askfirst.toml:7: llm.top_p: must be a number, not true",
            "askfirst.toml:9: daemon.log_level: must be 'debug', 'info', 'warning' or 'error', not \"loud\"",
            f"askfirst.toml:10: daemon.stop_grace: 'soon' is not a duration; use {FORMS}",
            "askfirst.toml:11: daemon.max_concurrent_runs: must be at least 1, not 0",
            "askfirst.toml:12: wbe: unknown table; did you mean 'web'?",
            "askfirst.toml:14: agents.x: must be a table: [agents.x], not 1",
            "askfirst.toml:16: agents.y.every: must be at least 1s, not '0s'",
            "ASKFIRST_WEB__HOTS: unknown setting; did you mean ASKFIRST_WEB__HOST?",
        ]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("web = 3", "1: web: must be a table: [web], not 3"),
            ("agents = []", "1: agents: must be a table: [agents.NAME], not []"),
            (
                "[web]\nallowed_hosts = 'a'",
                '2: web.allowed_hosts: must be a list such as ["one", "two"], not "a"',
            ),
            (
                "[web]\nallowed_hosts = [\n'a',\n3]",
                "4: web.allowed_hosts[1]: must be a text in quotes, not 3",
            ),
            ("[web]\nport = 70000", "2: web.port: must be at most 65535, not 70000"),
            ("[web]\nhost = ''", "2: web.host: must not be empty"),
            ("[daemon]\ndata_dir = 3", "2: daemon.data_dir: must be a path in quotes, not 3"),
            ("[daemon]\nstop_grace = 0", "2: daemon.stop_grace: must be longer than 0"),
            ("[daemon]\nstop_grace = true", "2: daemon.stop_grace: must be a duration such as"),
            ("[llm]\nmodel = 3", "2: llm.model: must be a text in quotes, not 3"),
            ("[llm]\nbackend = 'auto'\ncache = true", "3: llm.cache: unknown setting; did you mean"),
            ("[proposals]\napprovers = 'ana'", '2: proposals.approvers: must be a table, not "ana"'),
            ("[proposals.approvers]\nmode = 'all'", "1: proposals.approvers: mode 'all' needs the names"),
            (
                "[proposals.approvers]\npeeple = []",
                "2: proposals.approvers.peeple: unknown setting; did you mean",
            ),
            ("[agents.'My Agent']", '1: agents."My Agent": this cannot be an agent\'s name'),
            (
                "[web]\nzzzzzz = 1",
                "2: web.zzzzzz: unknown setting; known are allowed_hosts, enabled, host, port",
            ),
            ("[daemon]\ndata_dir = {}", "2: daemon.data_dir: must be a path in quotes, not a table"),
        ],
    )
    def test_a_value_that_cannot_work_is_named_in_plain_words(
        self, write: Write, text: str, said: str
    ) -> None:
        found = problems_of(write(text))
        assert len(found) == 1, found
        assert found[0].startswith(f"askfirst.toml:{said}"), found

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("[web]\nport 8484\n", "2:6"),
            ('[web]\nhost = "open\n', "2:13"),
            ("[web]\nport = 1\nport = 2\n", "3:9"),
            ("[web", "1:5"),
        ],
    )
    def test_a_file_that_is_no_toml_is_told_with_line_and_column(
        self, write: Write, text: str, where: str
    ) -> None:
        assert problems_of(write(text))[0].startswith(f"askfirst.toml:{where}: not valid TOML: ")

    def test_a_file_that_is_no_text_is_told_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "askfirst.toml"
        path.write_bytes(b"[web]\nport = 1\n# caf\xe9\n")
        assert problems_of(path) == ["askfirst.toml:3: is not UTF-8; save the file as UTF-8 text"]

    def test_a_byte_order_mark_does_no_harm(self, tmp_path: Path) -> None:
        path = tmp_path / "askfirst.toml"
        path.write_bytes(b"\xef\xbb\xbf[web]\r\nport = 9000\r\n")
        assert load_settings(path, {}).web.port == 9000

    def test_a_file_that_nests_too_deeply_is_refused(self, write: Write) -> None:
        found = problems_of(write("a = " + "[" * 3000 + "]" * 3000))
        assert found == ["askfirst.toml: its tables are nested too deeply"]


class TestPlaces:
    def test_a_named_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        missing = tmp_path / "no.toml"
        for path, environ, by in (
            (missing, {}, "--config"),
            (None, {"ASKFIRST_CONFIG": str(missing)}, "ASKFIRST_CONFIG"),
        ):
            with pytest.raises(
                SettingsError, match=re.escape(f"{missing}: does not exist (it was named by {by})")
            ):
                load_settings(path, environ)
        with pytest.raises(SettingsError, match="is a folder, not a file"):
            load_settings(tmp_path, {})

    def test_the_named_file_comes_first_then_the_variable_then_the_working_folder_then_the_users(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        user = Path(os.environ["XDG_CONFIG_HOME"]) / "askfirst" / "askfirst.toml"
        files = (
            tmp_path / "named.toml",
            tmp_path / "variable.toml",
            tmp_path / "config" / "askfirst.toml",
            user,
        )
        for number, file in enumerate(files, start=9001):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"[web]\nport = {number}\n")
        variable = {"ASKFIRST_CONFIG": "variable.toml"}
        assert load_settings(Path("named.toml"), variable).web.port == 9001
        assert load_settings(None, variable).web.port == 9002
        assert load_settings(None, {}).web.port == 9003
        files[2].unlink()
        assert load_settings(None, {}).web.port == 9004
        assert config_places()[-1] == SYSTEM_CONFIG


class TestEnvironment:
    def test_the_environment_wins_over_the_file(self, write: Write) -> None:
        path = write(
            '[llm]\nmodel = "a"\ntemperature = 1.0\n[web]\nport = 1\nenabled = true\n'
            '[agents.my-agent]\nevery = "1h"\n'
        )
        settings = load_settings(
            path,
            {
                "LLM_MODEL": "b",
                "LLM_TEMPERATURE": "0",
                "ASKFIRST_WEB__PORT": "9000",
                "ASKFIRST_WEB__ENABLED": "off",
                "ASKFIRST_WEB__ALLOWED_HOSTS": "pi.lan, pi.local",
                "ASKFIRST_PROPOSALS__EXPIRES_AFTER": "2d",
                "ASKFIRST_PROPOSALS__APPROVERS__PEOPLE": "ana,luis",
                "ASKFIRST_AGENTS__MY_AGENT__EVERY": "15m",
                "ASKFIRST_AGENTS__MY_AGENT__MAX_OPEN": "7",
                "ASKFIRST_AGENTS__NEW__ENABLED": "false",
                "ASKFIRST_WEB__HOST": "",
            },
        )
        assert (settings.llm.model, settings.llm.temperature) == ("b", 0.0)
        assert (settings.web.port, settings.web.enabled, settings.web.host) == (9000, False, "127.0.0.1")
        assert settings.web.allowed_hosts == ("pi.lan", "pi.local")
        config = settings.agent_config("my-agent")
        assert (config.every, config.max_open) == (timedelta(minutes=15), 7)
        assert config.expires_after == timedelta(days=2)
        assert config.approvers == Approvers(people=("ana", "luis"))
        assert settings.enabled_agents == ("my-agent",)

    def test_what_is_wrong_in_the_environment_names_the_variable(self) -> None:
        found = problems_of(
            None,
            ASKFIRST_WEB__PORT="many",
            ASKFIRST_WEB__ENABLED="perhaps",
            ASKFIRST_LLM__MODEL="x",
            ASKFIRST_NOTHING__LIKE_IT="x",
            LLM_TEMPERATURE="warm",
            LLM_TOP_P="3",
            ASKFIRST_AGENTS__X__TIMEOUT="never",
        )
        assert found[:6] == [
            f"ASKFIRST_AGENTS__X__TIMEOUT: agents.x.timeout: 'never' is not a duration; use {FORMS}",
            "ASKFIRST_LLM__MODEL: unknown setting; the table [llm] has variables of its own: LLM_MODEL",
            "ASKFIRST_NOTHING__LIKE_IT: unknown setting; `askfirst config schema` lists the settings",
            'ASKFIRST_WEB__ENABLED: web.enabled: must be true or false, not "perhaps"',
            'ASKFIRST_WEB__PORT: web.port: must be a whole number, not "many"',
            "LLM_TEMPERATURE: llm.temperature: must be a number from 0.0 to 2.0, not 'warm'",
        ]
        assert found[6].startswith("LLM_TOP_P: llm.top_p: must be a number above 0 and at most 1")

    def test_every_setting_has_a_variable_of_its_own_that_reaches_it(self) -> None:
        examples = {
            "backend": "mock", "model": "m", "api_base": "http://x", "api_key": "k", "api_key_file": __file__,
            "temperature": "0.5", "max_tokens": "5", "top_p": "0.5", "timeout": "5", "seed": "5",
            "context_length": "512", "max_reply_bytes": "2048", "enable_cache": "false", "cache_dir": "/c",
            "data_dir": "/d", "plugin_dir": "/p", "prompts_dir": "/q", "log_level": "error",
            "log_levels": "llm=debug",
            "log_format": "json", "stop_grace": "3s", "max_concurrent_runs": "5",
            "enabled": "false", "host": "localhost", "port": "5",
            "think": "high", "overflow": "trim", "keep_alive": "5m", "embed_model": "e", "adapter_path": "/a",
            "model_dir": "/m", "idle_seconds": "5", "api_version": "2026-10-21", "cache_mode": "read",
            "cache_max_age": "5", "cache_max_bytes": "100000", "retries": "5", "max_concurrency": "5",
            "requests_per_minute": "5", "tokens_per_minute": "5", "budget": "5 usd/day", "usage_file": "/u",
            "prices": "m=1/2", "max_runs_per_backend": "5", "timezone": "Europe/Madrid",
            "quiet": "22:00-07:00", "backoff": "5m", "quarantine_after": "5", "min_free_bytes": "5",
            "ping_url": "http://x", "control_group": "staff", "max_series": "500", "pushgateway": "http://p",
            "ping_every": "1h", "stall_after": "5s", "every": "1h", "keep": "5", "dir": "/b", "runs": "5d",
            "calls": "5d", "proposals": "5d",
            "endpoint": "http://c:1", "headers": "a=b", "headers_file": str(SHIPPED), "content": "true",
            "sample": "0.5",
            "allowed_hosts": "a", "expires_after": "5h", "mode": "quorum", "people": "a", "quorum": "3",
        }  # fmt: skip
        shared = ("llm", "budgets", "agents")  # LLM_BUDGET can hold these too
        for path in known_keys().keys() - {shared}:
            variable = variable_of(path)
            before, after = load_settings(None, {}), load_settings(None, {variable: examples[str(path[-1])]})
            assert value_of(before, path) != value_of(after, path), variable

    def test_budgets_of_agents_and_prices_reach_the_client_beside_those_of_the_environment(
        self, write: Write
    ) -> None:
        text = (
            '[llm]\nbackend = "mock"\nbudget = "9 usd/day"\n'
            '[llm.budgets.agents]\na = "5 tokens/day, 2 usd/month"\n'
            '[llm.prices]\n"gpt-4o" = { input = 2.5, output = 10, cached = 1.25 }\n'
            '"m:1b" = { input = 1, output = 0 }\n'
        )
        settings = load_settings(write(text), {})
        environ = settings.llm_environ({})
        assert environ["LLM_BUDGET"] == "9 usd/day, agent a: 5 tokens/day, agent a: 2 usd/month"
        assert environ["LLM_PRICES"] == "gpt-4o=2.5/10/1.25, m:1b=1/0"
        assert LLMConfig.from_env(environ).budget == environ["LLM_BUDGET"]
        over = settings.llm_environ({"LLM_BUDGET": "1 usd/day"})["LLM_BUDGET"]
        assert over == "1 usd/day, agent a: 5 tokens/day, agent a: 2 usd/month"

    @pytest.mark.parametrize(
        ("lines", "problem"),
        [
            ('[llm]\nbudget = "2 eur/month"', "2: llm.budget: must be budgets such as"),
            ('[llm.budgets.agents]\na = "2 eur/month"', "llm.budgets.agents: a: must be budgets such as"),
            ('[llm.budgets.agents]\na = "agent b: 2 usd/month"', "a: must be an agent's name and what"),
            ('[llm.budgets.agents]\n"A b" = "2 usd/month"', "A b: must be an agent's name and what"),
            (
                '[llm.budgets]\nagent = "2 usd/month"',
                "llm.budgets.agent: unknown setting; did you mean 'agents'",
            ),
            ('[llm.prices]\n"m" = 3', 'must be "m" = { input = 2.5'),
            ('[llm.prices]\n"m" = { input = 3 }', 'must be "m" = { input = 2.5'),
            ('[llm.prices]\n"m" = { input = 3, output = 1, out = 2 }', 'must be "m" = { input = 2.5'),
        ],
    )
    def test_budgets_and_prices_that_cannot_work_are_told_with_their_place(
        self, write: Write, lines: str, problem: str
    ) -> None:
        (found,) = problems_of(write(lines + "\n"))
        assert problem in found

    def test_a_misspelt_model_variable_is_warned_about(self) -> None:
        settings = load_settings(None, {"LLM_MODLE": "x", "LLM_SOMETHING_ELSE": "y"})
        assert [str(w) for w in settings.warnings] == [
            "LLM_MODLE: nothing reads this variable; did you mean LLM_MODEL?"
        ]


def sources_has(settings: Settings, path: tuple[str | int, ...]) -> bool:
    return path in settings.sources.lines


def value_of(settings: Settings, path: tuple[str | int, ...]) -> object:
    value: object = settings
    for part in path:
        value = getattr(value, str(part))
    return value


class TestModel:
    def test_the_llm_variables_amount_to_file_and_environment_together(
        self, write: Write, tmp_path: Path
    ) -> None:
        path = write(
            '[llm]\nbackend = "remote"\nmodel = "gpt-4"\ntemperature = 0\nenable_cache = false\n'
            '[daemon]\ndata_dir="d"\n'
        )
        assert load_settings(path, {}).llm_environ({"LLM_MODEL": "other", "UNRELATED": "x"}) == {
            "LLM_BACKEND": "remote",
            "LLM_MODEL": "other",
            "LLM_TEMPERATURE": "0.0",
            "LLM_ENABLE_CACHE": "false",
            "LLM_CACHE_DIR": str(tmp_path / "d" / "llm_cache"),
            "LLM_MODEL_DIR": str(tmp_path / "d" / "models"),
            "LLM_USAGE_FILE": str(tmp_path / "d" / "llm_usage.sqlite3"),
        }

    def test_the_variables_make_the_configuration_that_they_came_from(self) -> None:
        settings = Settings(
            llm=LLMSettings(backend="mock", temperature=0.25, max_tokens=7, seed=3, timeout=2.5)
        )
        config = LLMConfig.from_env(settings.llm_environ({}))
        assert (config.backend, config.temperature, config.max_tokens, config.seed, config.timeout) == (
            "mock", 0.25, 7, 3, 2.5,
        )  # fmt: skip

    @pytest.mark.parametrize("variable", ["auto", "AUTO", " "])
    def test_auto_leaves_the_choice_to_the_program(self, variable: str) -> None:
        assert "LLM_BACKEND" not in Settings().llm_environ({"LLM_BACKEND": variable})

    def test_auto_in_the_environment_wins_over_a_backend_in_the_file(self, write: Write) -> None:
        path = write('[llm]\nbackend = "ollama"\n')
        assert load_settings(path, {}).llm_environ({})["LLM_BACKEND"] == "ollama"
        assert "LLM_BACKEND" not in load_settings(path, {"LLM_BACKEND": "auto"}).llm_environ({})

    def test_the_environment_counts_for_settings_that_were_built_directly(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_BACKEND", "mock")
        assert Settings().llm_environ()["LLM_BACKEND"] == "mock"


class TestKey:
    SECRET = "sk-this-is-the-key-1234"

    def test_the_key_is_read_from_its_file(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(f"{self.SECRET}\n")
        settings = load_settings(write('[llm]\napi_key_file = "key"\n'), {})
        assert settings.llm_environ({})["LLM_API_KEY"] == self.SECRET
        assert settings.warnings == ()

    def test_the_credential_that_systemd_hands_over_is_found_by_itself(self, tmp_path: Path) -> None:
        (tmp_path / "llm_api_key").write_text(self.SECRET)
        environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
        assert load_settings(None, environ).llm_environ(environ)["LLM_API_KEY"] == self.SECRET

    def test_a_key_of_the_environment_wins_over_every_file(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("the-file's")
        for line in ('api_key_file = "key"', 'api_key = "the-config-file\'s"'):
            settings = load_settings(write(f"[llm]\n{line}\n"), {"LLM_API_KEY": self.SECRET})
            assert settings.llm_environ({})["LLM_API_KEY"] == self.SECRET
        settings = load_settings(write('[llm]\napi_key = "x"\n'), {"LLM_API_KEY_FILE": str(tmp_path / "key")})
        assert settings.llm_environ({})["LLM_API_KEY"] == "the-file's"

    def test_a_key_file_that_is_not_there_is_told_with_its_line(self, write: Write, tmp_path: Path) -> None:
        path = write('[llm]\n\napi_key_file = "key"\n')
        assert problems_of(path) == [
            f"askfirst.toml:3: llm.api_key_file: there is no file {tmp_path / 'key'}"
        ]

    def test_a_key_file_that_vanishes_later_is_told_when_it_is_needed(
        self, write: Write, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text(self.SECRET)
        settings = load_settings(write('[llm]\napi_key_file = "key"\n'), {})
        (tmp_path / "key").unlink()
        with pytest.raises(
            SettingsError, match=r"askfirst\.toml:2: llm\.api_key_file: .*cannot be read: No such file"
        ):
            settings.llm_environ({})

    def test_two_keys_are_one_too_many(self, write: Write) -> None:
        found = problems_of(write(f'[llm]\napi_key = "{self.SECRET}"\napi_key_file = "{SHIPPED}"\n'))
        assert found == [
            "askfirst.toml:1: llm: api_key and api_key_file are both set; keep one, better api_key_file"
        ]

    def test_a_key_that_others_can_read_is_warned_about(self, write: Write) -> None:
        path = write(f'[llm]\napi_key = "{self.SECRET}"\n')
        path.chmod(0o644)
        (warning,) = load_settings(path, {}).warnings
        assert (warning.line, warning.key) == (2, "llm.api_key")
        assert f"chmod 600 {path}" in str(warning)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        assert load_settings(path, {}).warnings == ()

    def test_the_key_shows_in_no_message_and_no_repr(self, write: Write) -> None:
        path = write(f'[llm]\napi_key = "{self.SECRET}"\n')
        settings = load_settings(path, {})
        assert self.SECRET not in f"{settings!r} {settings} {settings.llm!r} {settings.warnings}"
        found = problems_of(write(f'[llm]\napi_key = ["{self.SECRET}"]\n'))
        assert found == ["askfirst.toml:2: llm.api_key: must be a text in quotes"]


class TestAgents:
    def test_what_proposals_says_holds_for_agents_that_say_nothing_of_their_own(self) -> None:
        settings = Settings(
            proposals=ProposalSettings(
                expires_after=timedelta(hours=5), approvers=ApproverSettings(mode="all", people=("ana",))
            ),
            agents={"one": {}, "two": {"expires_after": "1h", "approvers": {"people": ["luis"]}}},
        )
        one, two = settings.agent_config("one"), settings.agent_config("two")
        assert one.expires_after == timedelta(hours=5)
        assert one.approvers == Approvers(mode="all", people=("ana",))
        assert two.expires_after == timedelta(hours=1)
        assert two.approvers == Approvers(people=("luis",))

    def test_an_agent_with_a_bad_table_names_its_problems(self) -> None:
        with pytest.raises(AgentSettingsError, match=r"agents\.one\.every"):
            Settings(agents={"one": {"every": "soon"}}).agent_config("one")

    def test_the_settings_of_an_agents_own_are_checked_on_demand(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "plugins").mkdir(mode=0o700)
        shutil.copy(ROOT / "tests" / "support" / "garden.py", tmp_path / "plugins")
        path = write(
            '[agents.garden]\nask = true\nbeds = "x"\nbedz = "y"\n\n[agents.gardn]\n\n'
            "[agents.other]\nenabled = false\nx = 1\n[web]\nport = 'x'\n[daemon]\ndata_dir = '.'\n"
        )
        assert len(problems_of(path)) == 1
        with pytest.raises(SettingsError) as caught:
            load_settings(path, {}, check_agents=True)
        found = [str(problem).replace(f"{path}", "askfirst.toml") for problem in caught.value.problems]
        assert found == [
            "askfirst.toml:4: agents.garden.bedz: unknown setting; did you mean 'beds'?",
            "askfirst.toml:6: agents.gardn: there is no such agent; did you mean 'garden'?",
            'askfirst.toml:12: web.port: must be a whole number, not "x"',
        ]


def test_an_address_that_others_can_reach_is_warned_about(write: Write) -> None:
    settings = load_settings(write('[web]\nhost = "0.0.0.0"\n'), {})
    assert [warning.key for warning in settings.warnings] == ["web.host"]
    assert load_settings(write('[web]\nhost = "::1"\n'), {}).warnings == ()
    assert load_settings(write('[web]\nhost = "0.0.0.0"\nenabled = false\n'), {}).warnings == ()


def test_a_problem_knows_its_place_for_programs_too(write: Write) -> None:
    path = write("[web]\nport = -1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    assert caught.value.problems == (
        SettingsProblem(key="web.port", message="must be at least 0, not -1", source=str(path), line=2),
    )


def test_levels_of_parts_may_be_written_as_toml_has_them(write: Write) -> None:
    wanted = {"llm": "debug", "agents.garden": "info", "daemon.store.space": "error"}
    for text in (
        'log_levels = { llm = "debug", "agents.garden" = "info", daemon.store.space = "error" }',
        '[daemon.log_levels]\nllm = "debug"\nagents.garden = "info"\n"daemon.store.space" = "error"',
    ):
        settings = load_settings(write(f"[daemon]\n{text}\n[agents.garden]\n"), {})
        assert settings.daemon.log_levels == wanted
        assert settings.warnings == ()
    (warning,) = load_settings(write('[daemon]\n\nlog_levels = { agents.gardn = "info" }\n'), {}).warnings
    assert warning.line == 3
    assert "agents.gardn logs nothing: there is no table [agents.gardn]" in str(warning)
    with pytest.raises(SettingsError) as caught:
        load_settings(write('[daemon]\n\nlog_levels = { httpcore = "debug" }\n'), {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "daemon.log_levels")
    assert "httpcore is never logged at debug" in problem.message
