"""The key of a call: every change that shapes the answer changes it, another order of the words does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llm import LLMConfig, LLMMessage, LLMRequest, ToolCall
from llm.factory import IN_THE_REQUEST
from llm.factory import SHAPES_NOTHING as SETTINGS_THAT_SHAPE_NOTHING
from llm.middleware.keys import SHAPES_NOTHING, Keys, shape_of
from llm.types import Caller
from tests.support.asked import KEYS, SHAPING, Maker, fuzz_keys, key


@pytest.mark.parametrize("seed", range(4))
def test_a_change_changes_the_key_and_another_order_does_not(seed: int) -> None:
    fuzz_keys(1000, seed)  # tests/benchmarks/bench_cache.py: 100,000 times


def test_the_maker_changes_every_field_that_shapes_an_answer() -> None:
    maker = Maker(1)
    for name in SHAPING:
        assert len({repr(maker.field(name)) for _ in range(50)}) > 1
    fields = {f.name for f in dataclasses.fields(LLMRequest)}
    assert set(SHAPING) | SHAPES_NOTHING == fields


def test_a_new_field_of_a_request_or_of_a_message_is_in_the_key_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib

    import llm.middleware.keys
    import llm.types

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wider(LLMRequest):
        language: str = "en"

    @dataclasses.dataclass(frozen=True)
    class Heard(LLMMessage):
        tone: str = "calm"

    monkeypatch.setattr(llm.types, "LLMRequest", Wider)
    keys = importlib.reload(llm.middleware.keys)
    try:
        made = keys.Keys("mock", {})
        values: dict[str, Any] = {"model": "m", "temperature": 0, "max_tokens": 1, "top_p": None}
        calm, loud = Heard("user", "Hi"), Heard("user", "Hi", tone="loud")
        found = {
            made.key(Wider(messages=(message,), language=language, **values), "")
            for message in (calm, loud)
            for language in ("en", "es")
        }
        assert len(found - {None}) == 4
    finally:
        monkeypatch.undo()
        importlib.reload(llm.middleware.keys)


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "read"},
        {"max_age": 3.0},
        {"caller": Caller(agent="other")},
        {"template": "offer@1"},
        {"key": b"x"},
        {"temperature": 0},
        {"temperature": -0.0},
    ],
)
def test_what_shapes_nothing_is_not_in_the_key(change: dict[str, Any]) -> None:
    request = dataclasses.replace(Maker(2).request(), temperature=0.0)
    assert key(dataclasses.replace(request, **change)) == key(request)


def test_arguments_that_python_takes_for_equal_are_not_the_same_question() -> None:
    def ask(value: object) -> LLMRequest:
        turn = LLMMessage("assistant", "", (ToolCall("1", "f", {"x": value}),))
        return dataclasses.replace(Maker(2).request(), messages=(turn,), tools=())

    questions = [ask(value) for value in (1, True, 1.0, "1")]
    assert len({key(question) for question in questions}) == 4
    assert {shape_of(question) for question in questions} == {None}  # never found by being equal


def test_an_omitted_temperature_is_not_zero() -> None:
    request = Maker(2).request()
    assert key(dataclasses.replace(request, temperature=None)) != key(
        dataclasses.replace(request, temperature=0)
    )


def test_a_fingerprint_a_namespace_and_a_backend_are_in_the_key() -> None:
    request = Maker(2).request()
    found = {
        Keys(backend, {"api_base": base}).key(request, fingerprint)
        for backend in ("mock", "ollama")
        for base in (None, "http://a")
        for fingerprint in ("", "sha256:1")
    }
    assert len(found) == 8


@pytest.mark.parametrize("schema", [{"enum": {"a"}}, {"x": float("nan")}, {"x": object()}])
def test_what_cannot_be_written_down_has_no_key(schema: Any) -> None:
    assert KEYS.key(dataclasses.replace(Maker(2).request(), schema=schema), "") is None


def test_every_setting_is_in_the_request_in_the_namespace_or_said_to_shape_nothing() -> None:
    names = {f.name for f in dataclasses.fields(LLMConfig)}
    assert names >= IN_THE_REQUEST | SETTINGS_THAT_SHAPE_NOTHING
    assert {f.name for f in dataclasses.fields(LLMRequest)}.issuperset(IN_THE_REQUEST)
    assert names - IN_THE_REQUEST - SETTINGS_THAT_SHAPE_NOTHING >= {
        "api_base",
        "context_length",
        "adapter_path",
    }
