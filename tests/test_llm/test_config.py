"""LLMConfig: what the variables mean, and what is said when they cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llm import ConfigurationError, LLMConfig
from llm.config import DEFAULT_MODELS, ENVIRONMENT, environment_values

EVERY_VARIABLE = {
    "LLM_BACKEND": ("remote", "backend", "remote"),
    "LLM_MODEL": ("gpt-4", "model", "gpt-4"),
    "LLM_API_KEY": ("sk-1", "api_key", "sk-1"),
    "LLM_API_BASE": ("https://api.example.org/v1", "api_base", "https://api.example.org/v1"),
    "LLM_TEMPERATURE": ("0", "temperature", 0.0),
    "LLM_MAX_TOKENS": ("256", "max_tokens", 256),
    "LLM_TOP_P": ("0.5", "top_p", 0.5),
    "LLM_TIMEOUT": ("12.5", "timeout", 12.5),
    "LLM_ENABLE_CACHE": ("false", "enable_cache", False),
    "LLM_CACHE_DIR": ("/var/cache/x", "cache_dir", "/var/cache/x"),
    "LLM_SEED": ("-7", "seed", -7),
    "LLM_CONTEXT_LENGTH": ("8192", "context_length", 8192),
    "LLM_MAX_REPLY_BYTES": ("1024", "max_reply_bytes", 1024),
    "LLM_THINK": ("high", "think", "high"),
    "LLM_OVERFLOW": ("trim", "overflow", "trim"),
    "LLM_KEEP_ALIVE": ("10m", "keep_alive", "10m"),
    "LLM_EMBED_MODEL": ("all-minilm", "embed_model", "all-minilm"),
    "LLM_ADAPTER_PATH": ("/srv/adapter", "adapter_path", "/srv/adapter"),
    "LLM_MODEL_DIR": ("/srv/models", "model_dir", "/srv/models"),
    "LLM_IDLE_SECONDS": ("60", "idle_seconds", 60.0),
    "LLM_API_VERSION": ("2026-10-21", "api_version", "2026-10-21"),
    "LLM_CACHE_MODE": ("read", "cache_mode", "read"),
    "LLM_CACHE_MAX_AGE": ("3600", "cache_max_age", 3600.0),
    "LLM_CACHE_MAX_BYTES": ("1000000", "cache_max_bytes", 1_000_000),
    "LLM_RETRIES": ("0", "retries", 0),
    "LLM_MAX_CONCURRENCY": ("4", "max_concurrency", 4),
    "LLM_REQUESTS_PER_MINUTE": ("60", "requests_per_minute", 60),
    "LLM_TOKENS_PER_MINUTE": ("90000", "tokens_per_minute", 90_000),
    "LLM_BUDGET": ("100000 tokens/day", "budget", "100000 tokens/day"),
    "LLM_PRICES": ("gpt-4o=2.5/10/1.25", "prices", "gpt-4o=2.5/10/1.25"),
    "LLM_USAGE_FILE": ("/srv/usage.sqlite3", "usage_file", "/srv/usage.sqlite3"),
}


def test_without_any_variable_the_documented_defaults_hold() -> None:
    config = LLMConfig.from_env({})
    assert config == LLMConfig()
    assert (config.backend, config.model) == ("ollama", "qwen2.5:1.5b")
    assert (config.temperature, config.max_tokens, config.top_p) == (0.7, 512, 0.9)
    assert (config.timeout, config.enable_cache, config.cache_dir) == (30.0, True, ".llm_cache")
    assert (config.api_key, config.api_base, config.seed) == (None, None, None)


def test_every_field_has_a_variable_and_every_variable_a_test() -> None:
    assert set(ENVIRONMENT) == {field.name for field in dataclasses.fields(LLMConfig)}
    assert set(ENVIRONMENT.values()) == set(EVERY_VARIABLE)


@pytest.mark.parametrize("variable", EVERY_VARIABLE)
def test_each_variable_sets_its_field(variable: str) -> None:
    text, field, expected = EVERY_VARIABLE[variable]
    config = LLMConfig.from_env({variable: f"  {text} "})
    assert getattr(config, field) == expected
    assert config.with_values(**{field: getattr(LLMConfig(), field)}).backend == "ollama"


def test_the_environment_of_the_process_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MODEL", "phi3:mini")
    assert LLMConfig.from_env().model == "phi3:mini"


@pytest.mark.parametrize("backend", DEFAULT_MODELS)
def test_each_backend_has_a_model_of_its_own_when_none_is_named(backend: str) -> None:
    assert LLMConfig(backend=backend).model == DEFAULT_MODELS[backend]
    assert LLMConfig.from_env({"LLM_BACKEND": f" {backend.upper()} "}).model == DEFAULT_MODELS[backend]


def test_an_empty_variable_counts_as_unset() -> None:
    assert LLMConfig.from_env(dict.fromkeys(EVERY_VARIABLE, " ")) == LLMConfig()


@pytest.mark.parametrize("text", ["auto", "AUTO", " Auto "])
def test_backend_auto_counts_as_unset(text: str) -> None:
    assert environment_values({"LLM_BACKEND": text}) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("true", "TRUE", "1", "yes", "on")),
        *((text, False) for text in ("false", "False", "0", "no", "off")),
    ],
)
def test_switches_are_read_as_people_write_them(text: str, expected: bool) -> None:
    assert LLMConfig.from_env({"LLM_ENABLE_CACHE": text}).enable_cache is expected


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LLM_TEMPERATURE", "warm"),
        ("LLM_TEMPERATURE", "-0.1"),
        ("LLM_TEMPERATURE", "2.1"),
        ("LLM_TEMPERATURE", "nan"),
        ("LLM_TOP_P", "0"),
        ("LLM_TOP_P", "1.1"),
        ("LLM_TIMEOUT", "0"),
        ("LLM_TIMEOUT", "-3"),
        ("LLM_TIMEOUT", "inf"),
        ("LLM_TIMEOUT", "30s"),
        ("LLM_MAX_TOKENS", "0"),
        ("LLM_MAX_TOKENS", "4.7"),
        ("LLM_MAX_TOKENS", "many"),
        ("LLM_SEED", "1.5"),
        ("LLM_CONTEXT_LENGTH", "255"),
        ("LLM_MAX_REPLY_BYTES", "10"),
        ("LLM_ENABLE_CACHE", "maybe"),
        ("LLM_THINK", "perhaps"),
        ("LLM_OVERFLOW", "cut"),
        ("LLM_CACHE_MODE", "sometimes"),
        ("LLM_CACHE_MAX_AGE", "0"),
        ("LLM_CACHE_MAX_BYTES", "100"),
        ("LLM_RETRIES", "11"),
        ("LLM_MAX_CONCURRENCY", "0"),
        ("LLM_IDLE_SECONDS", "-2"),
        ("LLM_API_BASE", "localhost:11434"),
    ],
)
def test_a_value_that_cannot_work_is_refused_and_the_variable_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=variable) as caught:
        LLMConfig.from_env({variable: text})
    assert variable == "LLM_API_BASE" or text.strip("-").split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": True},
        {"temperature": "0.5"},
        {"temperature": 10**400},
        {"max_tokens": 5.0},
        {"max_tokens": True},
        {"timeout": None},
        {"enable_cache": "yes"},
        {"seed": "1"},
        {"backend": None},
        {"model": 3},
        {"api_key": b"sk"},
        {"api_base": 80},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_where_it_enters(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigurationError, match=ENVIRONMENT[name]):
        LLMConfig(**values)


def test_all_faults_are_named_at_once() -> None:
    environ = {"LLM_TEMPERATURE": "warm", "LLM_TOP_P": "7", "LLM_MAX_TOKENS": "x", "LLM_API_BASE": "ftp://x"}
    with pytest.raises(ConfigurationError) as caught:
        LLMConfig.from_env(environ)
    assert all(variable in str(caught.value) for variable in environ)


def test_an_unknown_setting_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ConfigurationError, match=r"'temprature'.*temperature, max_tokens"):
        LLMConfig.from_mapping({"temprature": 0.1})


def test_a_key_is_shown_neither_by_repr_nor_by_a_message() -> None:
    assert "secret" not in repr(LLMConfig(api_key="sk-secret"))
    with pytest.raises(ConfigurationError) as caught:  # the key in the wrong variable
        LLMConfig.from_env({"LLM_API_BASE": "sk-secret", "LLM_API_KEY": "sk-secret", "LLM_TOP_P": "9"})
    assert "secret" not in str(caught.value)


def test_a_configuration_cannot_be_changed_only_copied() -> None:
    config = LLMConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = "other"  # type: ignore[misc]
    assert config.with_values(max_tokens=7) == LLMConfig(max_tokens=7)
    with pytest.raises(ConfigurationError, match="LLM_MAX_TOKENS"):
        config.with_values(max_tokens=0)


def test_another_backend_brings_its_own_model_along() -> None:
    config = LLMConfig(backend="ollama", model="llama3.2:1b")
    assert config.with_values(backend="mock").model == "mock"
    assert config.with_values(backend="mock", model="x").model == "x"
    assert config.with_values(backend="ollama").model == "llama3.2:1b"


def test_equal_configurations_are_one_key_of_a_dictionary() -> None:
    assert len({LLMConfig(), LLMConfig(), LLMConfig(seed=1)}) == 2
