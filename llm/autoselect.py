"""Which model to use when nobody said: what is there, asked in a fixed order.

    LLM_BACKEND if it is set
    -> an Ollama that answers and has a usable model
    -> mlx, on Apple silicon
    -> the embedded llama.cpp
    -> none: agents work by their rules alone

The mock backend is never chosen by itself: it must not decide about real data.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from llm.config import DEFAULT_MODELS, LLMConfig, environment_values
from llm.errors import LLMError

if TYPE_CHECKING:
    from llm.routes import Routes
    from llm.wire.ollama import OllamaModel

PREFERRED = ("qwen2.5:1.5b", "llama3.2:1b", "phi3:mini")
"""Ollama models to take first: small enough for a Raspberry Pi, good enough for one small question."""

PROBE_SECONDS = 2.0
"""How long an Ollama may take to list its models before it counts as absent."""

_EMBEDDING_NAMES = ("embed", "minilm", "bge-", "e5-")
_SERVER_ONLY = frozenset({"api_base", "api_key"})

Values = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The outcome of a choice.

    Attributes:
        config: how to reach the model, None for rules only; the first one's where there are several.
        reason: one sentence for a person: what is used, and why.
        considered: what was passed over before, and why, one sentence each.
        routes: several backends and their routes, None where there is one or none.
    """

    config: LLMConfig | None
    reason: str
    considered: tuple[str, ...] = ()
    routes: Routes | None = None


@dataclass(frozen=True, slots=True)
class _Passed:
    """Why a backend cannot be used."""

    reason: str


async def select_backend(
    environ: Mapping[str, str] | None = None, *, model_hint: str | None = None
) -> Selection:
    """Choose a backend and a model, without loading any.

    Args:
        environ: where the `LLM_*` variables are read, `os.environ` if None. All of them apply to what is
            chosen; with `LLM_MODEL` set, nothing but that model is.
        model_hint: a model to prefer where it is to be had, when `LLM_MODEL` is not set.

    Raises:
        ConfigurationError: a variable cannot be read; all of them are named at once.
    """
    values = environment_values(environ)
    config = LLMConfig.from_mapping(values)
    if "backend" in values:
        reason = f"LLM_BACKEND says {config.backend}, so it is used with the model {config.model}."
        return Selection(config=config, reason=reason)
    hints = [model_hint] if model_hint else []
    considered: list[str] = []
    attempts: tuple[Callable[[], Awaitable[Selection | _Passed]], ...] = (
        partial(_ollama, values, hints, environ),
        partial(_mlx, values, hints, here=_on_apple_silicon()),
        partial(_llamacpp, values, hints),
    )
    for attempt in attempts:
        found = await attempt()
        if isinstance(found, Selection):
            return replace(found, considered=tuple(considered))
        considered.append(found.reason)
    reason = "No model can be used here, so agents work by their rules alone."
    return Selection(config=None, reason=reason, considered=tuple(considered))


async def _ollama(
    values: Values, hints: Sequence[str], environ: Mapping[str, str] | None
) -> Selection | _Passed:
    from llm.backends.ollama import OllamaBackend, ollama_address  # noqa: PLC0415 - only when it is looked for

    try:
        config = LLMConfig.from_mapping({**values, "backend": "ollama"})
        if environ is not None and environ is not os.environ and "OLLAMA_HOST" in environ:
            config = config.with_values(api_base=ollama_address(config, environ).full_url(""))
        probe = config.with_values(timeout=min(PROBE_SECONDS, config.timeout))
        async with OllamaBackend(probe) as client:
            models = await client.list_models()
    except LLMError as error:
        return _Passed(f"Ollama is not used: {error}.")
    model = _ollama_model(models, values.get("model"), hints)
    if isinstance(model, _Passed):
        return model
    reason = f"Ollama answers at {ollama_address(config).origin} and has {model}, so that is used."
    return Selection(config=config.with_values(model=model), reason=reason)


def _ollama_model(models: Sequence[OllamaModel], wanted: str | None, hints: Iterable[str]) -> str | _Passed:
    from llm.wire.ollama import same_model  # noqa: PLC0415 - only when an Ollama is there

    if wanted:
        if any(same_model(wanted, model.name) for model in models):
            return wanted
        return _Passed(
            f"Ollama answers but has no {wanted}, which LLM_MODEL asks for: `ollama pull {wanted}`."
        )
    usable = [model for model in models if _completes(model) and not _in_the_cloud(model)]
    for name in (*hints, *PREFERRED):
        if any(same_model(name, model.name) for model in usable):
            return name
    if not usable:
        return _Passed(f"Ollama answers but has no model that can chat: `ollama pull {PREFERRED[0]}`.")
    return min(usable, key=lambda model: (model.size, model.name)).name


def _completes(model: OllamaModel) -> bool:
    """Whether it writes text; an Ollama too old to say is judged by the model's name."""
    if model.capabilities is not None:
        return "completion" in model.capabilities
    return not any(part in model.name.lower() for part in _EMBEDDING_NAMES)


def _in_the_cloud(model: OllamaModel) -> bool:
    """Whether Ollama only passes it on to its cloud, which nobody asked for; such models are tiny on disk."""
    return model.name.endswith(("-cloud", ":cloud"))


async def _mlx(values: Values, hints: Sequence[str], *, here: bool) -> Selection | _Passed:
    if not here:
        return _Passed("mlx is not used: it is chosen by itself only on Apple silicon.")
    from llm.backends.mlx_files import is_local, unavailable_reason  # noqa: PLC0415 - only where it can run

    found = await _embedded("mlx", values, hints, unavailable_reason)
    if isinstance(found, _Passed) or found.config is None:
        return found
    model = found.config.model
    local = await asyncio.to_thread(is_local, model)
    when = "is there" if local else "is fetched at the first call"
    return replace(found, reason=f"This is Apple silicon with mlx-lm, and {model} {when}, so that is used.")


async def _llamacpp(values: Values, hints: Sequence[str]) -> Selection | _Passed:
    from llm.backends.llamacpp import unavailable_reason  # noqa: PLC0415 - only when nothing else is there

    check = partial(unavailable_reason, model_dir=values.get("model_dir"))
    return await _embedded("llamacpp", values, hints, check)


async def _embedded(
    backend: str,
    values: Values,
    hints: Sequence[str],
    unavailable_reason: Callable[[str], str | None],
) -> Selection | _Passed:
    """An engine of our own: the wanted model, else the hinted one if it is there, else the default."""
    own = {name: value for name, value in values.items() if name not in _SERVER_ONLY}
    wanted = values.get("model")
    problem: str | None = None
    for model in [wanted] if wanted else [*hints, DEFAULT_MODELS[backend]]:
        # In a thread: it may read a whole model file to check it.
        problem = await asyncio.to_thread(unavailable_reason, model)
        if problem is None:
            config = LLMConfig.from_mapping({**own, "backend": backend, "model": model})
            reason = f"The embedded {backend} is installed and {model} is there, so that is used."
            return Selection(config=config, reason=reason)
    return _Passed(f"{backend} is not used: {problem}.")


def _on_apple_silicon() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"
