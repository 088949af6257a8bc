"""Finding the file of a model: in a Python package, at a path, or among those pulled from a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from llm.backends.known import PACKAGED, RECOMMENDED, HubFile, PackagedModel, hub_file
from llm.backends.pulled import PART, beside, from_home, models_folder, pulled_path, read_manifest
from llm.errors import ModelNotFound


def model_file(model: str, folder: Path | None = None) -> Path:
    """The GGUF file that `model` means.

    Args:
        model: a path (~ is the home folder), a name of `PACKAGED`, or a name that `hub_file` understands.
        folder: of the pulled models; the usual one if None.

    Raises:
        ModelNotFound: there is none, or it is no GGUF file; the message says how to get it.
    """
    if model in PACKAGED:
        return _checked(_packaged_file(model, PACKAGED[model]))
    path = from_home(model)
    source = None if path.exists() else hub_file(model)
    if source is not None:
        return _checked(_pulled_file(model, source, folder))
    if path.suffix.lower() != ".gguf" and len(path.parts) < 2 and not path.exists():
        msg = (
            f"the embedded llama.cpp knows no model {model!r}; it knows "
            f"{', '.join((*PACKAGED, *RECOMMENDED))}, and LLM_MODEL may also be the path of a .gguf file, "
            "or owner/name:file.gguf of Hugging Face"
        )
        raise ModelNotFound(msg)
    return _checked(path)


def _packaged_file(name: str, model: PackagedModel) -> Path:
    spec = find_spec(model.package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        msg = f"the model {name} is not installed; {model.install}"
        raise ModelNotFound(msg)
    return Path(folders[0]) / model.file


def _pulled_file(name: str, source: HubFile, folder: Path | None) -> Path:
    path = pulled_path(source, models_folder() if folder is None else folder)
    manifest = read_manifest(path)
    if manifest is None or not path.exists():
        begun = (
            " (a pull of it was begun and goes on where it stopped)" if beside(path, PART).exists() else ""
        )
        msg = f"the model {name} is not on this machine{begun}; get it with `askfirst llm pull {name}`"
        raise ModelNotFound(msg)
    if path.stat().st_size != manifest.size:
        msg = (
            f"{path} is not the file that was pulled: it has {path.stat().st_size} bytes and had "
            f"{manifest.size}; remove it with `askfirst llm pull --remove {name}` and pull it again"
        )
        raise ModelNotFound(msg)
    return path


def _checked(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        msg = f"the model file {path} cannot be read ({error.strerror}); set LLM_MODEL to a .gguf file"
        raise ModelNotFound(msg) from error
    if magic != b"GGUF":
        msg = f"the model file {path} is no GGUF file; get the model in that format and set LLM_MODEL to it"
        raise ModelNotFound(msg)
    return path.absolute()
