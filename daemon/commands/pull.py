"""`askfirst llm pull`: bring a model to this machine, list those that are here, remove one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.errors import ExitCode
from daemon.render import Column

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.render import Screen
    from llm import LLMConfig
    from llm.hub import PulledModel, PullProgress

_TENTHS = 10
_NAMED = (Column("NAME", style="bold"), Column("SIZE", right=True))


@click.command(
    epilog=examples(
        "askfirst llm pull qwen2.5:0.5b",
        "askfirst llm pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q8_0.gguf",
        "askfirst llm pull --list",
        "askfirst llm pull --remove qwen2.5:0.5b",
    )
)
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="Show which models are here and which are known.")
@click.option("--remove", metavar="NAME", help="Delete a model that was pulled.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the repository, else main.")
@command_options
@pass_invocation
def pull(
    call: Invocation, /, name: str | None, listing: bool, remove: str | None, revision: str | None
) -> int:
    """Bring a model to this machine, for the embedded llama.cpp; a pull that was broken off goes on.

    NAME is one of `--list`, or owner/name:file.gguf of Hugging Face; without it, the configured model is
    meant. With LLM_BACKEND=ollama, it is Ollama's name, and Ollama pulls it.
    """
    if sum((name is not None, listing, remove is not None)) > 1 or (revision and (listing or remove)):
        msg = "give a NAME (perhaps with --revision), or --list, or --remove NAME"
        raise click.UsageError(msg)
    settings = call.settings()
    with call.logging(settings):
        from llm import LLMConfig  # noqa: PLC0415 - `--help` stays quick

        config = LLMConfig.from_env({"LLM_BACKEND": "llamacpp", **settings.llm_environ()})
        screen = call.screen()
        if config.backend == "ollama":
            _with_ollama(screen, config, name, remove=remove, listing=listing, revision=revision)
        elif listing:
            _list(screen, _folder(config))
        elif remove is not None:
            _remove(screen, remove, _folder(config))
        else:
            _pull(screen, _wanted(name, config), config, revision or "main")
    return ExitCode.OK


def _folder(config: LLMConfig) -> Path:
    from llm.hub import models_folder  # noqa: PLC0415 - `--help` stays quick

    return models_folder(config.model_dir)


def _wanted(name: str | None, config: LLMConfig) -> str:
    """The name, else the configured model, else a mistake in the command line."""
    if name is None and config.backend not in {"llamacpp", "ollama"}:
        msg = f"which model? LLM_BACKEND is {config.backend}, whose models are not pulled this way"
        raise click.UsageError(msg)
    return name or config.model


def _pull(screen: Screen, name: str, config: LLMConfig, revision: str) -> None:
    from llm.hub import pull_model  # noqa: PLC0415 - `--help` stays quick

    with _goes_on(name), _progress(screen, name) as tell:
        model = run(pull_model(name, folder=_folder(config), revision=revision, on_progress=tell))
    if screen.as_json:
        screen.data(asdict(model))
        return
    checked = "as the hub says" if model.verified else "the hub names none to compare it with"
    screen.line(f"{name} is here: {_size(model.size)}, SHA-256 {model.sha256[:16]}... ({checked})", "green")
    screen.line(f"  {model.path}", "dim")
    screen.line(f"Use it with LLM_BACKEND=llamacpp and LLM_MODEL={name}")


@contextmanager
def _goes_on(name: str) -> Iterator[None]:
    """Say to a person who presses Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\nStopped. What has come is kept: `askfirst llm pull {name}` goes on from there.", err=True
        )
        raise


def _list(screen: Screen, folder: Path) -> None:
    from llm.hub import RECOMMENDED, pulled_models  # noqa: PLC0415 - `--help` stays quick

    here = pulled_models(folder)
    if screen.as_json:
        known = {name: {**asdict(model), "label": model.source.label} for name, model in RECOMMENDED.items()}
        screen.data({"folder": folder, "pulled": [asdict(model) for model in here], "known": known})
        return
    screen.line(f"Models in {folder}:" if here else f"No model was pulled into {folder} yet.")
    if here:
        heads = (
            Column("NAME", style="bold"),
            Column("SIZE", right=True),
            Column("SHA-256"),
            Column("PULLED"),
        )
        screen.table(heads, [_row(model) for model in here])
    names = {model.name for model in here}
    rows = [
        (name, f"{model.megabytes:,} MB", "embeddings" if model.embeds else "chat", model.licence)
        for name, model in RECOMMENDED.items()
        if name not in names
    ]
    if rows:
        screen.heading("Known by a short name:")
        screen.table((*_NAMED, Column("FOR"), Column("LICENCE")), rows)


def _row(model: PulledModel) -> tuple[str, ...]:
    sum_ = model.sha256[:16] if model.verified else f"{model.sha256[:16]} (not compared)"
    return model.name, _size(model.size), sum_, model.pulled_at[:10]


def _remove(screen: Screen, name: str, folder: Path) -> None:
    from llm.hub import remove_model  # noqa: PLC0415 - `--help` stays quick

    freed = remove_model(name, folder)
    if screen.as_json:
        screen.data({"removed": name, "bytes": freed})
    else:
        screen.line(f"{name} is gone; {_size(freed)} are free again")


def _with_ollama(
    screen: Screen,
    config: LLMConfig,
    name: str | None,
    *,
    remove: str | None,
    listing: bool,
    revision: str | None,
) -> None:
    from llm.hub import ollama_models, pull_by_ollama  # noqa: PLC0415 - `--help` stays quick

    if remove is not None or revision is not None:
        way = f"`ollama rm {remove}`" if remove is not None else "a tag in the name, such as qwen2.5:1.5b"
        msg = f"LLM_BACKEND is ollama, which has its own way for that: {way}"
        raise click.UsageError(msg)
    if listing:
        names = run(ollama_models(config))
        screen.data({"pulled": names}) if screen.as_json else screen.items(
            names or ["Ollama has no model yet"]
        )
        return
    wanted = _wanted(name, config)
    with _goes_on(wanted), _progress(screen, wanted) as tell:
        size = run(pull_by_ollama(wanted, config, on_progress=tell))
    if screen.as_json:
        screen.data({"name": wanted, "size": size})
    else:
        screen.line(f"Ollama has {wanted}: {_size(size)}", "green")


@contextmanager
def _progress(screen: Screen, name: str) -> Iterator[Callable[[PullProgress], None]]:
    """How progress is shown: a bar at a terminal, a line now and then elsewhere, nothing in JSON."""
    if screen.as_json:
        yield lambda _: None
    elif screen.for_people:
        with _bar(screen, name) as tell:
            yield tell
    else:
        yield _Lines(screen, name)


@contextmanager
def _bar(screen: Screen, name: str) -> Iterator[Callable[[PullProgress], None]]:
    from rich.progress import (  # noqa: PLC0415 - only for people at a terminal
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=screen.console(), transient=True) as shown:
        task = shown.add_task(name, total=None)

        def tell(progress: PullProgress) -> None:
            if progress.step == "resuming":  # what was here before must not count as speed
                shown.reset(task, total=progress.total, completed=progress.done)
            words = name if progress.step == "downloading" else f"{name}: {progress.step}"
            total = progress.total or None
            shown.update(task, description=words, total=total, completed=progress.done)

        yield tell


class _Lines:
    """A line at each step, and at each tenth of the bytes."""

    def __init__(self, screen: Screen, name: str) -> None:
        self._screen = screen
        self._name = name
        self._step = ""
        self._tenth = 0

    def __call__(self, progress: PullProgress) -> None:
        tenth = progress.done * _TENTHS // progress.total if progress.total else 0
        if progress.step == self._step and tenth <= self._tenth:
            return
        self._step, self._tenth = progress.step, tenth
        amount = f" {_size(progress.done)} of {_size(progress.total)}" if progress.total else ""
        if progress.step != "done":
            self._screen.line(f"{self._name}: {progress.step}{amount}")


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
