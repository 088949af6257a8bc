"""The configuration: defaults, then the file, then the environment; every problem at once.

load.py reads it, model.py says what there is, environment.py and toml_lines.py say where each value came
from, explain.py tells a person about it.
"""

from __future__ import annotations

from daemon.settings.load import load_settings
from daemon.settings.model import (
    ApproverSettings,
    DaemonSettings,
    LLMSettings,
    ProposalSettings,
    Settings,
    WebSettings,
)

__all__ = [
    "ApproverSettings",
    "DaemonSettings",
    "LLMSettings",
    "ProposalSettings",
    "Settings",
    "WebSettings",
    "load_settings",
]
