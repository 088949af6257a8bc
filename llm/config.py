"""LLMConfig: how to reach a model, as one frozen value that is checked where it enters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from llm.errors import ConfigurationError
from llm.types import CACHE_MODES, CacheMode, Think

DEFAULT_BACKEND = "ollama"
AUTO = "auto"
"""Value of `LLM_BACKEND` that means the same as leaving it unset: see `llm.autoselect`."""

DEFAULT_MODELS: Mapping[str, str] = {
    "ollama": "qwen2.5:1.5b",
    "mlx": "mlx-community/Qwen2.5-1.5B-Instruct-4bit",
    "remote": "gpt-4",
    "llamacpp": "smollm2:135m",
    "mock": "mock",
}
"""The model of each backend when none is named."""

MAX_REPLY_BYTES = 4 * 1024 * 1024
"""Default byte cap of one reply: far above any answer of 100,000 tokens, far below a Pi's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMConfig:
    """How to reach a model and how it shall answer.

    Attributes:
        backend: "ollama", "llamacpp", "mlx", "remote" or "mock" (or one that a plugin registered).
        model: the backend's name of the model; empty means the backend's default.
        temperature: 0.0 to 2.0; 0 is greedy, not "unset".
        max_tokens: most tokens to generate, at least 1.
        top_p: nucleus threshold, above 0 and at most 1.
        api_key: key of a remote service; never shown by `repr`.
        api_base: base URL of the server; None means the backend's usual place. Not shown by `repr` either.
        timeout: total seconds of one call, waiting, loading and answering together.
        enable_cache: keep and reuse answers.
        cache_dir: folder of the cache's database.
        seed: seed of the sampler, None leaves it to the backend.
        context_length: tokens of context to ask a local engine for; one fixed value, because Ollama
            reloads the model whenever it changes.
        max_reply_bytes: a reply larger than this is cut off and refused.
        think: whether the model may think before it answers: True, False, "low", "medium" or "high".
        overflow: what to do with a prompt longer than the context: "refuse" it, or "trim" its oldest turns.
        keep_alive: how long Ollama keeps the model loaded: seconds or "10m", "0" not at all, "-1" for ever;
            None leaves it to the server.
        embed_model: the model of `embed`, None means `model`.
        adapter_path: folder of a LoRA adapter for mlx, None for none.
        model_dir: folder of downloaded models, None means the user's data folder.
        idle_seconds: an embedded engine without a call for so long gives its memory back.
        api_version: Anthropic's API version, None means the backend's own choice.
        cache_mode: "on", "read" (keep nothing new), "write" (ask anew, and keep) or "off".
        cache_max_age: seconds; an older kept reply does not count. None takes any.
        cache_max_bytes: most bytes of the cache's file.
        retries: how often a failed call is made again, at most.
        max_concurrency: calls under way at a time, None for no limit.
        requests_per_minute: most calls in a minute, None for no limit.
        tokens_per_minute: most tokens in a minute, None for no limit.
        budget: what may be spent, such as "100000 tokens/day, 2 usd/month"; see `llm.budgets`.
        prices: the owner's own prices, such as "gpt-4o=2.5/10/1.25"; see `llm.pricing`.
        usage_file: the ledger of all calls, None keeps none.

    Raises:
        ConfigurationError: one or more values cannot work; all of them are named at once.
    """

    backend: str = DEFAULT_BACKEND
    model: str = ""
    temperature: float = 0.7
    max_tokens: int = 512
    top_p: float = 0.9
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = field(default=None, repr=False)  # may hold a password
    timeout: float = 30.0
    enable_cache: bool = True
    cache_dir: str = ".llm_cache"
    seed: int | None = None
    context_length: int = 4096
    max_reply_bytes: int = MAX_REPLY_BYTES
    think: Think = False
    overflow: str = "refuse"
    keep_alive: str | None = None
    embed_model: str | None = None
    adapter_path: str | None = None
    model_dir: str | None = None
    idle_seconds: float = 300.0
    api_version: str | None = None
    cache_mode: CacheMode = "on"
    cache_max_age: float | None = None
    cache_max_bytes: int = 64 * 1024 * 1024
    retries: int = 2
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget: str | None = None
    prices: str | None = None
    usage_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("backend", "model", *_OPTIONAL_TEXTS):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name in _OPTIONAL_TEXTS):
                msg = f"{ENVIRONMENT[name]} ({name}) must be a text, not a {type(value).__name__}"
                raise ConfigurationError(msg)
        object.__setattr__(self, "backend", self.backend.strip().lower())
        if not self.model:
            default = DEFAULT_MODELS.get(self.backend, DEFAULT_MODELS["mock"])
            object.__setattr__(self, "model", default)
        problems = [text for name, text in _problems(self)]
        if problems:
            raise ConfigurationError("; ".join(problems))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> LLMConfig:
        """Read the `LLM_*` variables; an unset or empty one keeps its default.

        Args:
            environ: the environment to read, `os.environ` if None.

        Raises:
            ConfigurationError: one or more variables cannot be read; all of them are named at once.
        """
        return cls.from_mapping(environment_values(environ))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> LLMConfig:
        """Build a configuration from field names and values, texts being parsed.

        Raises:
            ConfigurationError: unknown names or values that cannot work; all are named at once.
        """
        parsed: dict[str, Any] = {}
        problems: list[str] = []
        for name, value in values.items():
            try:
                parsed[name] = parse_field(name, value)
            except ConfigurationError as error:
                problems.append(str(error))
        try:
            config = cls(**parsed)
        except ConfigurationError as error:
            problems.append(str(error))
        if problems:
            raise ConfigurationError("; ".join(problems))
        return config

    def with_values(self, **changes: Any) -> LLMConfig:
        """A copy with some fields changed; a new backend without a model gets that backend's default."""
        if changes.get("backend", self.backend) != self.backend:
            changes.setdefault("model", "")
        return replace(self, **changes)


ENVIRONMENT: Mapping[str, str] = {
    "backend": "LLM_BACKEND",
    "model": "LLM_MODEL",
    "api_key": "LLM_API_KEY",
    "api_base": "LLM_API_BASE",
    "temperature": "LLM_TEMPERATURE",
    "max_tokens": "LLM_MAX_TOKENS",
    "top_p": "LLM_TOP_P",
    "timeout": "LLM_TIMEOUT",
    "enable_cache": "LLM_ENABLE_CACHE",
    "cache_dir": "LLM_CACHE_DIR",
    "seed": "LLM_SEED",
    "context_length": "LLM_CONTEXT_LENGTH",
    "max_reply_bytes": "LLM_MAX_REPLY_BYTES",
    "think": "LLM_THINK",
    "overflow": "LLM_OVERFLOW",
    "keep_alive": "LLM_KEEP_ALIVE",
    "embed_model": "LLM_EMBED_MODEL",
    "adapter_path": "LLM_ADAPTER_PATH",
    "model_dir": "LLM_MODEL_DIR",
    "idle_seconds": "LLM_IDLE_SECONDS",
    "api_version": "LLM_API_VERSION",
    "cache_mode": "LLM_CACHE_MODE",
    "cache_max_age": "LLM_CACHE_MAX_AGE",
    "cache_max_bytes": "LLM_CACHE_MAX_BYTES",
    "retries": "LLM_RETRIES",
    "max_concurrency": "LLM_MAX_CONCURRENCY",
    "requests_per_minute": "LLM_REQUESTS_PER_MINUTE",
    "tokens_per_minute": "LLM_TOKENS_PER_MINUTE",
    "budget": "LLM_BUDGET",
    "prices": "LLM_PRICES",
    "usage_file": "LLM_USAGE_FILE",
}
"""Each field's environment variable."""


def environment_values(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The fields that the environment sets, as texts; empty ones and `LLM_BACKEND=auto` count as unset."""
    source = os.environ if environ is None else environ
    found = {name: source.get(variable, "").strip() for name, variable in ENVIRONMENT.items()}
    if found["backend"].lower() == AUTO:
        found["backend"] = ""
    return {name: text for name, text in found.items() if text}


_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError
    return lowered in _TRUE


def _thinking(text: str) -> Think:
    lowered = text.lower()
    if lowered in _LEVELS:
        return cast("Think", lowered)
    return _boolean(text)


_PARSERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "a number from 0.0 to 2.0"),
    "top_p": (float, "a number above 0 and at most 1"),
    "timeout": (float, "a number of seconds above 0"),
    "max_tokens": (int, "a whole number of tokens, 1 or more"),
    "seed": (int, "a whole number"),
    "context_length": (int, "a whole number of tokens, 256 or more"),
    "max_reply_bytes": (int, "a whole number of bytes, 1024 or more"),
    "enable_cache": (_boolean, "true or false"),
    "think": (_thinking, "true, false, low, medium or high"),
    "overflow": (str, "refuse or trim"),
    "idle_seconds": (float, "a number of seconds above 0"),
    "cache_mode": (str, f"one of {', '.join(CACHE_MODES)}"),
    "cache_max_age": (float, "a number of seconds above 0"),
    "cache_max_bytes": (int, "a whole number of bytes, 65536 or more"),
    "retries": (int, "a whole number from 0 to 10"),
    "max_concurrency": (int, "a whole number, 1 or more"),
    "requests_per_minute": (int, "a whole number, 1 or more"),
    "tokens_per_minute": (int, "a whole number, 1 or more"),
}

_OPTIONAL_TEXTS = frozenset(
    {
        *("api_key", "api_base", "keep_alive", "embed_model", "adapter_path", "model_dir", "api_version"),
        *("budget", "prices", "usage_file"),
    }
)
_LEVELS = ("low", "medium", "high")
_OVERFLOW = ("refuse", "trim")


def parse_field(name: str, value: Any) -> Any:
    """Turn one value, perhaps a text from the environment, into what the field holds.

    Raises:
        ConfigurationError: the field does not exist, or the value is not of its kind.
    """
    known = [f.name for f in fields(LLMConfig)]
    if name not in known:
        msg = f"unknown LLM setting {name!r}; the settings are {', '.join(known)}"
        raise ConfigurationError(msg)
    if name not in _PARSERS or not isinstance(value, str):
        return value
    parser, wanted = _PARSERS[name]
    try:
        return parser(value)
    except ValueError as error:
        msg = f"{ENVIRONMENT[name]} ({name}) must be {wanted}, not {value!r}"
        raise ConfigurationError(msg) from error


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _problems(config: LLMConfig) -> list[tuple[str, str]]:
    """Each field whose value cannot work, with a sentence that names its variable."""
    fine = {
        "temperature": _number(config.temperature) and 0 <= config.temperature <= 2,
        "top_p": _number(config.top_p) and 0 < config.top_p <= 1,
        "timeout": _number(config.timeout) and config.timeout > 0,
        "max_tokens": _whole(config.max_tokens, 1),
        "seed": config.seed is None or _whole(config.seed, -(2**63)),
        "context_length": _whole(config.context_length, 256),
        "max_reply_bytes": _whole(config.max_reply_bytes, 1024),
        "enable_cache": isinstance(config.enable_cache, bool),
        "think": isinstance(config.think, bool) or config.think in _LEVELS,
        "overflow": config.overflow in _OVERFLOW,
        "idle_seconds": _number(config.idle_seconds) and config.idle_seconds > 0,
        "cache_mode": config.cache_mode in CACHE_MODES,
        "cache_max_age": config.cache_max_age is None
        or (_number(config.cache_max_age) and config.cache_max_age > 0),
        "cache_max_bytes": _whole(config.cache_max_bytes, 65536),
        "retries": _whole(config.retries, 0) and config.retries <= 10,
        "max_concurrency": config.max_concurrency is None or _whole(config.max_concurrency, 1),
        "requests_per_minute": config.requests_per_minute is None or _whole(config.requests_per_minute, 1),
        "tokens_per_minute": config.tokens_per_minute is None or _whole(config.tokens_per_minute, 1),
    }
    found = [
        (
            name,
            f"{ENVIRONMENT[name]} ({name}) must be {_PARSERS[name][1]}, not {getattr(config, name)!r}",
        )
        for name, ok in fine.items()
        if not ok
    ]
    found += _spending_problems(config)
    base = config.api_base
    if base is not None and not base.lower().startswith(("http://", "https://")):
        # Not shown: a key that was put into the wrong variable would end up in a log.
        text = f"{ENVIRONMENT['api_base']} (api_base) must start with http:// or https://"
        found.append(("api_base", text))
    return found


def _spending_problems(config: LLMConfig) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if config.budget:
        from llm.budgets import parse_budgets  # noqa: PLC0415 - most programs have no budget

        try:
            parse_budgets(config.budget)
        except ConfigurationError as error:
            found.append(("budget", str(error)))
    if config.prices:
        from llm.pricing import parse_prices  # noqa: PLC0415 - most programs name no prices

        try:
            parse_prices(config.prices)
        except ConfigurationError as error:
            found.append(("prices", str(error)))
    return found
