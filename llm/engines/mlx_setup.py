"""What has to be in place before mlx is imported, and the import itself."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm.engines.mlx_protocol import Message, Refused, first_line

_CACHE_BYTES = 256 * 1024 * 1024
"""Freed buffers that mlx may keep; its default is all the memory there is (mlx-lm issue 1757)."""

_OPENBLAS = ("libopenblas.so.0", "libopenblas.so")

_FILES = ["*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model", "model*.safetensors", "1_Pooling/*"]
"""What of a model on the hub is wanted; no Python files, because no model's code is run."""


@contextmanager
def open_file_limit_kept() -> Iterator[None]:
    """`import mlx_lm` sets RLIMIT_NOFILE to (2048, 4096), and fails where the hard limit is lower."""
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real


def preload_openblas() -> None:
    """Put OpenBLAS before the reference BLAS that mlx-cpu bundles: 14 times as fast, if it is installed."""
    if sys.platform != "linux":
        return
    for name in _OPENBLAS:
        with suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return


def prepare_environment(settings: Message) -> None:
    """Set what the libraries read from the environment, before they are imported."""
    os.environ.update(settings["environ"])
    os.environ["TMPDIR"] = settings[
        "scratch"
    ]  # else mlx loads libraries from a fixed, guessable place in /tmp
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) - 1)))
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def import_mlx(install: str) -> Any:
    """mlx.core, with bounds on what it keeps.

    Raises:
        Refused: it cannot be imported.
    """
    preload_openblas()
    mx = _imported("mlx.core", install)
    mx.set_cache_limit(_CACHE_BYTES)
    if mx.default_device() == mx.cpu:
        mx.disable_compile()  # on the CPU it calls g++, seconds for each new shape, and gains nothing
    return mx


def import_mlx_lm(install: str) -> Any:
    """mlx_lm, without the limits that it sets.

    Raises:
        Refused: it cannot be imported.
    """
    with open_file_limit_kept():
        mlx_lm = _imported("mlx_lm", install)
    # Raising the wired limit takes macOS kernels down under load (mlx issue 3186). The package's attribute
    # of that name is a function, so the module is taken from the import system.
    generate: Any = importlib.import_module("mlx_lm.generate")
    generate.maybe_set_recommended_wired_limit = lambda: None
    return mlx_lm


def _imported(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Refused("connection", f"mlx-lm cannot be imported ({error}); {install}") from error


def located(name: str, way_out: str) -> Path:
    """The folder of a model, downloaded from the hub where that is needed and allowed.

    Raises:
        Refused: it is not here and cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # not on the hub, no network, no room on the disk, ...
        text = f"mlx-lm cannot load {name} ({first_line(error)}); {way_out}"
        raise Refused("model_not_found", text) from error
