"""`askfirst config`: check finds every problem, explain says where a value is from, schema what there is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import fastjsonschema
import pytest

from daemon.settings import load_settings
from daemon.settings.environment import known_keys
from daemon.settings.explain import HIDDEN, markdown, schema
from tests.support.program import ROOT, Program
from tests.test_docs.examples import Example, examples_of

DOCUMENT = ROOT / "docs" / "configuration.md"
KEY = "sk-this-is-the-key-1234"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program.with_garden(tmp_path, "leeks dry")


def rewrite(program: Program, text: str) -> Path:
    path = program.folder / "config" / "askfirst.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_check_says_that_a_good_configuration_works_and_which_file_it_is(program: Program) -> None:
    done = program.call("config", "check")
    path = program.folder / "config" / "askfirst.toml"
    assert (done.code, done.out) == (0, f"The configuration works: {path}.\n")
    assert program.call("config", "check", "--json").data == {
        "ok": True,
        "file": str(path),
        "problems": [],
        "warnings": [],
    }


def test_check_tells_every_problem_with_file_line_and_key(program: Program) -> None:
    path = rewrite(program, '[web]\nport = "x"\nhots = "y"\n[daemon]\nlog_level = 1\n')
    done = program.call("config", "check")
    assert done.code == 78
    assert [line.split(": ")[:2] for line in done.out.splitlines()] == [
        [f"{path}:2", "web.port"],
        [f"{path}:3", "web.hots"],
        [f"{path}:5", "daemon.log_level"],
    ]
    data = program.call("config", "check", "--json")
    assert data.code == 78
    assert data.data["ok"] is False
    assert [(p["key"], p["line"]) for p in data.data["problems"]] == [
        ("web.port", 2),
        ("web.hots", 3),
        ("daemon.log_level", 5),
    ]


def test_check_tells_a_syntax_error_with_line_and_column(program: Program) -> None:
    path = rewrite(program, "[web]\nport 1\n")
    assert program.call("config", "check").out.startswith(f"{path}:2:6: not valid TOML")
    assert program.call("config", "check", "--json").data["problems"][0]["column"] == 6


def test_check_warns_about_what_works_but_should_be_looked_at(program: Program) -> None:
    path = rewrite(program, f'[llm]\napi_key = "{KEY}"\n')
    path.chmod(0o644)
    done = program.call("config", "check")
    assert done.code == 0
    assert f"chmod 600 {path} (warning)" in done.out
    assert KEY not in done.out


def test_explain_says_what_a_value_is_and_where_it_came_from(program: Program) -> None:
    path = rewrite(program, "[web]\n\nport = 9000\n")
    done = program.call("config", "explain", "web.port", ASKFIRST_WEB__PORT="9001")
    assert done.code == 0
    assert done.out.splitlines() == [
        "web.port = 9001",
        "  from         ASKFIRST_WEB__PORT",
        f"  overrides    9000 in {path}:3",
        "  set it with  ASKFIRST_WEB__PORT",
        "  what it is   port to listen on; 0 takes any free one",
    ]
    (one,) = program.call("config", "explain", "web.port", "--json").data
    assert (one["value"], one["origin"]) == ("9000", f"{path}:3")
    (default,) = program.call("config", "explain", "web.host", "--json").data
    assert (default["value"], default["origin"]) == ("127.0.0.1", "default")


def test_explain_of_a_table_lists_all_that_is_in_it(program: Program) -> None:
    keys = [one["key"] for one in program.call("config", "explain", "web", "--json").data]
    assert keys == ["web.enabled", "web.host", "web.port", "web.allowed_hosts"]
    everything = {one["key"] for one in program.call("config", "explain", "--json").data}
    assert {".".join(map(str, path)) for path in known_keys()} <= everything
    assert "agents.garden.beds" in everything


def test_explain_knows_the_settings_of_an_agents_own_and_where_shared_ones_come_from(
    program: Program,
) -> None:
    path = rewrite(
        program,
        '[daemon]\ndata_dir = "../data"\n[proposals]\nexpires_after = "5h"\n[agents.garden]\nask = true\n',
    )
    found = {one["key"]: one for one in program.call("config", "explain", "agents.garden", "--json").data}
    said = {key.rpartition(".")[2]: (one["value"], one["origin"]) for key, one in found.items()}
    assert said["every"] == ("2h", "default")
    assert said["ask"] == ("true", f"{path}:6")
    assert said["beds"] == ("beds.txt", "default")
    assert said["expires_after"] == ("5h", f"{path}:4")
    assert found["agents.garden.ask"]["description"] == "whether to ask the model about each bed"
    assert "run" in found["agents.garden.timeout"]["description"]
    assert found["agents.garden.ask"]["variable"] == "ASKFIRST_AGENTS__GARDEN__ASK"
    assert (
        program.call(
            "config", "explain", "agents.garden.ask", "--json", ASKFIRST_AGENTS__GARDEN__ASK="false"
        ).data[0]["value"]
        == "false"
    )


def test_explain_shows_what_holds_for_a_model_setting_that_is_left_out(program: Program) -> None:
    found = {one["key"]: one["value"] for one in program.call("config", "explain", "llm", "--json").data}
    assert found["llm.temperature"] == "0.7"
    assert found["llm.cache_dir"] == str(program.folder / "data" / "llm_cache")
    assert found["llm.model"] == "not set"


def test_explain_never_shows_a_key(program: Program) -> None:
    rewrite(program, f'[llm]\napi_key = "{KEY}"\n').chmod(0o600)
    for environment in ({}, {"LLM_API_KEY": KEY + "2"}):
        for flags in ((), ("--json",)):
            done = program.call("config", "explain", "llm.api_key", *flags, **environment)
            assert KEY not in done.out + done.err
            assert HIDDEN in done.out


def test_explain_of_a_key_that_there_is_not_names_the_nearest(program: Program) -> None:
    done = program.call("config", "explain", "web.prot")
    assert done.code == 78
    assert "no such setting; did you mean 'web.port'?" in done.err


def test_the_schema_accepts_the_shipped_file_and_refuses_a_misspelt_key(program: Program) -> None:
    check = fastjsonschema.compile(program.call("config", "schema").data)
    shipped = tomllib.loads((ROOT / "config" / "askfirst.toml").read_text(encoding="utf-8"))
    check(json.loads(json.dumps(shipped)))
    for bad in (
        {"web": {"prot": 1}},
        {"wbe": {}},
        {"web": {"port": "x"}},
        {"agents": 3},
        {"config_file": "x"},
    ):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(bad)
    assert program.call("config", "schema", "--json").data == schema()


def test_the_table_in_the_document_is_the_one_that_the_program_prints(program: Program) -> None:
    table = program.call("config", "schema", "--markdown").out
    assert table == markdown()
    assert table in DOCUMENT.read_text(encoding="utf-8"), (
        "docs/configuration.md has another table: replace it with `askfirst config schema --markdown`"
    )


@pytest.mark.parametrize("example", examples_of(DOCUMENT, "toml"), ids=str)
def test_the_toml_in_the_document_works(tmp_path: Path, example: Example) -> None:
    path = tmp_path / "askfirst.toml"
    path.write_text(example.code, encoding="utf-8")
    assert load_settings(path, {}).enabled_agents == ("matchmaker",)


def test_every_setting_has_a_description(program: Program) -> None:
    for path, field in known_keys().items():
        assert field.description, path
