"""The configuration: defaults, then the file, then the environment; every problem at once.

load.py reads it, model.py says what there is, backends.py puts several backends together, environment.py and
toml_lines.py say where each value came from, explain.py tells a person about it.
"""

from __future__ import annotations

from daemon.settings.backends import all_keys, budgets_of, routes_of
from daemon.settings.load import load_settings
from daemon.settings.model import (
    ApproverSettings,
    BackendSettings,
    DaemonSettings,
    LLMSettings,
    ProposalSettings,
    RouteSettings,
    Settings,
    WebSettings,
)

__all__ = [
    "ApproverSettings",
    "BackendSettings",
    "DaemonSettings",
    "LLMSettings",
    "ProposalSettings",
    "RouteSettings",
    "Settings",
    "WebSettings",
    "all_keys",
    "budgets_of",
    "load_settings",
    "routes_of",
]
