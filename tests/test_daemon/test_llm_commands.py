"""`askfirst llm`: an answer and its price, and whether the model is there."""

from __future__ import annotations

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
