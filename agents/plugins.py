"""The user's own agents: the files of a plugin folder, loaded under a private prefix, not through `sys.path`.

A plugin runs with the rights of the program, so a file that somebody else could have written is refused.
"""

from __future__ import annotations

import inspect
import os
import re
import stat
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from traceback import walk_tb
from types import CodeType, ModuleType

from agents.base import BaseAgent
from agents.errors import AgentLoadError

PREFIX = "_askfirst_plugins"
"""Plugins are modules below this name, so that no file of a user can stand in for one of ours."""

_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One file or package of the plugin folder, and the agents that it defines."""

    path: Path
    agents: tuple[type[BaseAgent], ...]


def load_plugins(folder: Path) -> tuple[list[Plugin], list[str]]:
    """Import every plugin of `folder`; what cannot be used is said, and the others are loaded all the same.

    Returns:
        The plugins in the order of their names, and one sentence for each that was refused or failed.
    """
    found = list(loading(folder))
    plugins = [each for each in found if isinstance(each, Plugin)]
    return plugins, [each for each in found if isinstance(each, str)]


def loading(folder: Path, skip: Collection[Path] = ()) -> Iterator[Path | Plugin | str]:
    """Import the plugins of `folder` one after the other.

    Args:
        folder: the plugin folder.
        skip: files and packages that are not to be imported.

    Yields:
        For each one its path before it is imported, then the plugin, or the sentence why it is left out.
    """
    try:
        paths = sorted(_candidates(folder))
        if paths:
            _refuse_untrusted(folder)
    except (OSError, AgentLoadError) as error:
        yield _sentence(f"plugin folder {folder}", error)
        return
    seen: dict[str, Path] = {}
    for path in paths:
        first = seen.setdefault(path.stem, path)
        if path in skip:
            continue
        yield path
        try:
            yield _load(path, first)
        except (OSError, AgentLoadError) as error:
            yield _sentence(f"plugin {path}", error)


def load_plugin(path: Path) -> Plugin:
    """Import one file or package of a plugin folder.

    Raises:
        AgentLoadError: it must not be trusted, cannot be imported, or defines no agent.
    """
    try:
        _refuse_untrusted(path.parent)
        return _load(path, path)
    except OSError as error:
        raise AgentLoadError(_sentence(f"plugin {path}", error)) from error


def _sentence(what: str, error: Exception) -> str:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return f"the {what} is left out: {reason}"


def _candidates(folder: Path) -> Iterator[Path]:
    """The files and packages of `folder`; names that begin with `_` or `.` are the user's own business."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name.startswith(("_", ".")):
            continue
        is_module = path.suffix == ".py" and not path.is_dir()
        if is_module or (path / "__init__.py").is_file():
            yield path


def _load(path: Path, first: Path) -> Plugin:
    """Import one plugin.

    Raises:
        AgentLoadError: it must not be trusted, cannot be imported, or defines no agent.
        OSError: it cannot be read.
    """
    if first != path:
        msg = f"{first.name} has the same name; rename one of them"
        raise AgentLoadError(msg)
    if not _STEM.fullmatch(path.stem):
        msg = "its name may have letters, digits, _ and - only; rename it"
        raise AgentLoadError(msg)
    is_package = path.is_dir()
    for each in (path, *path.rglob("*")) if is_package else (path,):
        _refuse_untrusted(each)
    module = _import(f"{PREFIX}.{path.stem}", path / "__init__.py" if is_package else path)
    agents = tuple(_agents_of(module))
    if not agents:
        _forget(module.__name__)
        msg = "it defines no agent; an agent is a class derived from agents.BaseAgent that has analyze()"
        raise AgentLoadError(msg)
    return Plugin(path, agents)


def _refuse_untrusted(path: Path) -> None:
    """Refuse what anybody but root and the user of this process could have written.

    Raises:
        AgentLoadError: somebody else owns it or may write to it; the message has the command that helps.
        OSError: it cannot be looked at.
    """
    facts = path.stat()
    user = os.geteuid()
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        msg = f"{path} is neither a file nor a folder"
        raise AgentLoadError(msg)
    if facts.st_uid not in {0, user}:
        msg = f"{path} belongs to user {facts.st_uid}, not to {user} or root, and would run with your rights"
        raise AgentLoadError(msg)
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "everybody" if facts.st_mode & stat.S_IWOTH else "its group"
        msg = f"{who} can write to {path}, and it would run with your rights; use: chmod go-w {path}"
        raise AgentLoadError(msg)


class _SourceOnly(SourceFileLoader):
    """Reads the source each time: a cached file could be older than an edit, or written by somebody else."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import(name: str, file: Path) -> ModuleType:
    _forget(name)  # an earlier registry may have loaded another folder's plugin of this name
    if PREFIX not in sys.modules:
        parent = ModuleType(PREFIX)
        parent.__path__ = []
        sys.modules[PREFIX] = parent
    loader = _SourceOnly(name, str(file))
    spec = ModuleSpec(name, loader, origin=str(file))
    spec.has_location = True  # gives the module its __file__
    if file.name == "__init__.py":
        spec.submodule_search_locations = [str(file.parent)]
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses and relative imports need it
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is anybody's code; one bad plugin must not end the program
        _forget(name)
        msg = f"{_where(error, file)}{type(error).__name__}: {error}"
        raise AgentLoadError(msg) from error
    return module


def _forget(name: str) -> None:
    for known in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[known]


def _where(error: BaseException, file: Path) -> str:
    """The line of the plugin that raised `error`, for the message."""
    steps = walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == str(file)]
    return f"line {lines[-1]}: " if lines else ""  # the text of a SyntaxError names the line itself


def _agents_of(module: ModuleType) -> Iterator[type[BaseAgent]]:
    """The agents that are defined in `module` or, for a package, below it; each once."""
    found: list[type[BaseAgent]] = []
    for value in vars(module).values():
        if not (isinstance(value, type) and issubclass(value, BaseAgent)) or inspect.isabstract(value):
            continue
        own = value.__module__ == module.__name__ or value.__module__.startswith(f"{module.__name__}.")
        if own and value not in found:
            found.append(value)
    yield from found
