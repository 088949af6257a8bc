"""`askfirst llm`: an answer and its price, and whether the model is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.render import safe
from tests.support.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, {"LLM_BACKEND": "mock", "ASKFIRST_DAEMON__DATA_DIR": str(tmp_path / "data")})


def test_the_answer_comes_first_and_then_one_line_with_its_price(program: Program) -> None:
    done = program.call("llm", "ask", "Name three vegetables")
    assert done.code == 0, done
    answer, cost = done.out.splitlines()
    assert answer.startswith("This is a canned answer")
    assert cost.startswith("(mock, mock: ")
    assert cost.endswith(" s)")


def test_asked_again_it_says_cached_unless_told_not_to(program: Program) -> None:
    first, second, third = (
        program.call("llm", "ask", "Name three vegetables", "--json", *more).data
        for more in ((), (), ("--no-cache",))
    )
    assert [one["cached"] for one in (first, second, third)] == [False, True, False]
    assert first["content"] == second["content"]
    assert "from the cache" in program.call("llm", "ask", "Name three vegetables").out
    assert first["tokens_used"] == first["prompt_tokens"] + first["completion_tokens"]


def test_the_options_reach_the_model(program: Program) -> None:
    short = program.call("llm", "ask", "Hello", "--max-tokens", "3", "--json").data
    assert short["completion_tokens"] == 3
    assert short["finish_reason"] == "length"
    assert "cut off at max_tokens" in program.call("llm", "ask", "Hello", "--max-tokens", "3").out
    plain, told = (
        program.call("llm", "ask", "Hello", "--json", *more).data["prompt_tokens"]
        for more in ((), ("--system", "Be brief"))
    )
    assert told > plain
    bad = program.call("llm", "ask", "Hello", "--temperature", "9")
    assert (bad.code, "LLM_TEMPERATURE" in bad.err) == (78, True)


def test_a_prompt_can_come_from_standard_input(program: Program) -> None:
    typed = program.call("llm", "ask", "Name three vegetables", "--json").data
    piped = program.call("llm", "ask", "-", "--json", stdin="Name three vegetables").data
    assert piped["content"] == typed["content"]


def test_health_says_which_model_is_used_and_why(program: Program) -> None:
    done = program.call("llm", "health")
    assert done.code == 0
    assert done.out == "LLM_BACKEND says mock, so it is used with the model mock.\nIt is ready.\n"
    assert program.call("llm", "health", "--json").data["healthy"] is True


def test_a_model_that_cannot_be_reached_is_told_with_the_way_out(program: Program) -> None:
    for command in (("llm", "health"), ("llm", "ask", "Hello")):
        done = program.call(*command, LLM_BACKEND="ollama")
        assert done.code == 1, done
        assert "Traceback" not in done.err
    assert "ollama serve" in done.err
    assert program.call("llm", "health", "--json", LLM_BACKEND="ollama").data["healthy"] is False


def test_without_a_model_both_say_so(program: Program) -> None:
    nothing = {"LLM_BACKEND": "auto", "LLM_MODEL": "no-such-model:1b"}
    health = program.call("llm", "health", "--json", **nothing)
    assert (health.code, health.data["backend"], health.data["healthy"]) == (1, None, False)
    assert len(health.data["considered"]) >= 2
    asked = program.call("llm", "ask", "Hello", **nothing)
    assert asked.code == 78
    assert "No model can be used here" in asked.err


def test_the_configuration_chooses_the_model(program: Program, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('[llm]\nbackend = "mock"\nmodel = "canned"\n')
    program.environment.pop("LLM_BACKEND")
    assert program.call("--config", "my.toml", "llm", "health", "--json").data["model"] == "canned"


def test_what_is_asked_cannot_act_on_the_terminal(program: Program) -> None:
    done = program.call("llm", "ask", "\x1b[2Jhello \u202e")
    assert done.code == 0
    assert done.out == safe(done.out)


def test_a_streamed_answer_comes_in_pieces_and_ends_with_its_price(program: Program) -> None:
    done = program.call("llm", "ask", "Name three vegetables", "--stream")
    assert done.code == 0, done
    answer, cost = done.out.splitlines()
    assert answer == program.call("llm", "ask", "Name three vegetables", "--json").data["content"]
    assert cost.startswith("(mock, mock: ")


def test_a_streamed_answer_is_one_json_value_a_piece(program: Program) -> None:
    done = program.call("llm", "ask", "Name three vegetables", "--stream", "--json", "--no-cache")
    *pieces, end = [json.loads(line) for line in done.out.splitlines()]
    assert {piece["type"] for piece in pieces} == {"text"}
    assert len(pieces) > 1
    assert end["type"] == "end"
    assert "".join(piece["text"] for piece in pieces) == end["content"]


def test_an_answer_can_be_held_to_a_schema_given_as_text_or_as_a_file(
    program: Program, tmp_path: Path
) -> None:
    schema = '{"properties": {"sure": {"enum": ["yes", "no"]}}, "required": ["sure"]}'
    (tmp_path / "schema.json").write_text(schema)
    for given in (schema, "schema.json"):
        done = program.call("llm", "ask", "Is it?", "--schema", given)
        assert done.code == 0, done
        assert '"sure": "yes"' in done.out
    assert program.call("llm", "ask", "Is it?", "--schema", schema, "--json").data["object"] == {
        "sure": "yes"
    }


@pytest.mark.parametrize("schema", ["{", "[1]", "no-such-file.json", "schema-list.json"])
def test_a_schema_that_is_none_is_refused(program: Program, tmp_path: Path, schema: str) -> None:
    (tmp_path / "schema-list.json").write_text("[1]")
    done = program.call("llm", "ask", "Is it?", "--schema", schema)
    assert (done.code, "--schema" in done.err) == (64, True)


def test_a_stream_and_a_schema_do_not_go_together(program: Program) -> None:
    done = program.call("llm", "ask", "Is it?", "--stream", "--schema", "{}")
    assert (done.code, "do not go together" in done.err) == (64, True)


def test_another_backend_can_be_asked_and_one_that_does_not_exist_is_refused(program: Program) -> None:
    asked = program.call(
        "llm", "ask", "Hi", "--backend", "mock", "--model", "canned", "--json", LLM_BACKEND="ollama"
    )
    assert (asked.data["backend"], asked.data["model"]) == ("mock", "canned")
    refused = program.call("llm", "ask", "Hi", "--backend", "olama")
    assert (refused.code, "ollama" in refused.err) == (64, True)


def test_bench_measures_three_kinds_of_calls(program: Program) -> None:
    done = program.call("llm", "bench", "--runs", "2", "--tokens", "8")
    assert done.code == 0, done
    assert done.out.splitlines()[0] == "mock, mock: medians of 2 calls of up to 8 tokens"
    assert [line.split("  ")[0] for line in done.out.splitlines()[2:]] == [
        "first (loads the model)", "new prompt", "same beginning",
    ]  # fmt: skip
    data = program.call("llm", "bench", "--runs", "1", "--tokens", "8", "--json").data
    assert [row["completion_tokens"] for row in data["calls"]] == [8, 8, 8]
    assert all(row["tokens_per_second"] > 0 for row in data["calls"])


TWO = """
[llm.backends.small]
backend = "mock"
model = "tiny"

[llm.backends.big]
backend = "mock"
model = "large"

[llm.routes]
default = ["small", "big"]
tasks = { ask = ["big"] }
"""


def test_named_backends_are_asked_by_their_routes_or_by_name(program: Program, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    program.environment.pop("LLM_BACKEND")

    def asked(*more: str) -> tuple[str, str]:
        data = program.call("--config", "two.toml", "llm", "ask", "Hello", "--no-cache", "--json", *more).data
        return data["backend"], data["model"]

    assert asked() == ("big", "large"), "the task of this command is called ask"
    assert asked("--backend", "small") == ("mock", "tiny")
    assert asked("--backend", "big", "--model", "larger") == ("mock", "larger")
    refused = program.call("--config", "two.toml", "llm", "ask", "Hello", "--backend", "middle")
    assert (refused.code, "small, big" in refused.err) == (64, True)


def test_health_looks_at_each_named_backend(program: Program, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    program.environment.pop("LLM_BACKEND")
    done = program.call("--config", "two.toml", "llm", "health")
    assert done.code == 0, done
    assert done.out.splitlines()[1:] == ["small is ready.", "big is ready."]
    data = program.call("--config", "two.toml", "llm", "health", "--json").data
    assert data["backends"] == {"small": True, "big": True}
