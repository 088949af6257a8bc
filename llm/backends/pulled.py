"""The folder of pulled models: a file lies below it under its repository's name, its manifest beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from llm.backends.known import HubFile, hub_file
from llm.errors import ConfigurationError, LLMError, ModelNotFound

MANIFEST = ".json"
PART = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A model file that was pulled, as its manifest describes it.

    Attributes:
        name: the name to put into LLM_MODEL.
        repo: "owner/name" on the hub.
        file: path inside the repository.
        revision: branch, tag or commit that was asked for.
        commit: commit that the hub said it was, empty if it did not say.
        sha256: of the file, computed while it was written.
        verified: whether the hub named that sum too; false for a server that names none.
        size: bytes.
        endpoint: the hub's address.
        pulled_at: time of the end of the pull, ISO 8601 with its zone.
        path: the file; not in the manifest, which may be moved with it.
    """

    name: str
    repo: str
    file: str
    revision: str
    commit: str
    sha256: str
    verified: bool
    size: int
    endpoint: str
    pulled_at: str
    path: Path


def models_folder(setting: str | None = None) -> Path:
    """Where pulled models are kept: `setting` (LLM_MODEL_DIR), else the user's folder for a program's data.

    Raises:
        ConfigurationError: there is no home folder to put it into.
    """
    if setting:
        return from_home(setting).absolute()
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "askfirst" / "models"
    data = os.environ.get("XDG_DATA_HOME", "").strip()
    base = Path(data) if data.startswith("/") else _home() / ".local" / "share"
    return base / "askfirst" / "models"


def from_home(text: str) -> Path:
    """A path whose ~ is the home folder, if there is one."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises where there is no home


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        msg = "there is no home folder to keep models in; set LLM_MODEL_DIR"
        raise ConfigurationError(msg) from error


def pulled_path(source: HubFile, folder: Path) -> Path:
    """Where a pulled file lies, or would."""
    return folder.joinpath(*source.repo.split("/"), *PurePosixPath(source.file).parts)


def beside(path: Path, ending: str) -> Path:
    """The file that accompanies a model file: its manifest, part or lock."""
    return path.with_name(path.name + ending)


def write_manifest(model: PulledModel) -> None:
    """Say beside the file what it is.

    Raises:
        OSError: it cannot be written.
    """
    values = {name: value for name, value in asdict(model).items() if name != "path"}
    write_private(beside(model.path, MANIFEST), values)


def write_private(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON at once, readable by its owner only.

    Raises:
        OSError: it cannot be written.
    """
    fresh = beside(path, ".new")
    handle = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
    fresh.replace(path)


def read_manifest(path: Path) -> PulledModel | None:
    """What the manifest beside a model file says; None without a readable one."""
    try:
        values = json.loads(beside(path, MANIFEST).read_text(encoding="utf-8"))
        known = {f.name: values[f.name] for f in fields(PulledModel) if f.name != "path"}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PulledModel(**known, path=path)


def pulled_models(folder: Path) -> list[PulledModel]:
    """Every model in the folder that was pulled to its end, by name."""
    found = (
        read_manifest(path.with_suffix(""))
        for path in folder.glob(f"*/*/**/*{MANIFEST}")
        if path.name.lower().endswith(f".gguf{MANIFEST}") and path.with_suffix("").exists()
    )
    return sorted((model for model in found if model is not None), key=lambda model: model.name)


def remove_model(name: str, folder: Path) -> int:
    """Delete a pulled model, or what a broken-off pull left of it; the bytes that were freed.

    Raises:
        ModelNotFound: nothing of it is there.
        LLMError: it is being pulled at this moment, or cannot be deleted.
    """
    source = hub_file(name)
    path = None if source is None else pulled_path(source, folder)
    if path is None or not any(each.exists() for each in _family(path)):
        there = ", ".join(model.name for model in pulled_models(folder)) or "none"
        msg = f"{name!r} was not pulled; in {folder} there are: {there}"
        raise ModelNotFound(msg)
    try:
        with pull_lock(path, folder):
            return _delete(path, folder)
    except OSError as error:
        msg = f"{path} cannot be deleted ({error.strerror})"
        raise LLMError(msg) from error


def _family(path: Path) -> tuple[Path, ...]:
    """The model's file and all that may lie beside it, what makes it valid first."""
    part = beside(path, PART)
    return beside(path, MANIFEST), path, part, beside(part, MANIFEST)


def _delete(path: Path, folder: Path) -> int:
    freed = 0
    for each in _family(path):
        with suppress(FileNotFoundError):
            size = each.stat().st_size
            each.unlink()
            freed += size
    for parent in path.relative_to(folder).parents:
        if parent.name:
            with suppress(OSError):  # another model lives there too
                (folder / parent).rmdir()
    return freed


@contextmanager
def pull_lock(path: Path, folder: Path) -> Iterator[None]:
    """Keep two programs from pulling or removing the same file at once; makes the folders that are missing.

    Raises:
        LLMError: another program is at it.
        OSError: the folders or the lock's file cannot be made.
    """
    import fcntl  # noqa: PLC0415 - finding a model needs no lock

    locks = folder / ".locks"
    for each in (locks, path.parent):
        make_private_folders(each)
    name = "--".join(path.relative_to(folder).parts) + ".lock"
    handle = os.open(locks / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another program is pulling or removing {path.name} at this moment; wait for it to end"
            raise LLMError(msg) from error
        except OSError:
            pass  # a file system without locks: then without
        yield
    finally:
        os.close(handle)


def make_private_folders(folder: Path) -> None:
    """Make a folder and those above it that are missing, for their owner only.

    Raises:
        OSError: one cannot be made.
    """
    for each in reversed((folder, *folder.parents)):
        if not each.exists():
            with suppress(FileExistsError):  # another pull makes it too
                each.mkdir(mode=0o700)
