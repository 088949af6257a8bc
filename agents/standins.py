"""What is known of the plugins without a line of theirs running here: classes that stand in for theirs.

A process of its own imports the plugins and describes them (`agents.look`). One that loops, crashes or takes
all memory when it is imported is left out with the reason, and the others are looked at all the same. Whether
settings or an edited payload fit is asked there too, since the models are the plugins' own code.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.base import BaseAgent
from agents.confine import signal_name, small_environment
from agents.errors import AgentError, AgentLoadError
from agents.plugins import Plugin
from agents.proposal import Proposal

if TYPE_CHECKING:
    from pydantic import BaseModel

PROGRAM = Path(__file__).with_name("look.py")

LOOK_S = 10.0
"""How long one plugin may take to be imported, and one check of values."""

_START_S = 10.0
_POLL_S = 0.2
_DISTURBED = "it disturbs the look at what it defines"
_MAX_BYTES = 4 * 1024 * 1024
_KEPT = 256

_Sign = tuple[tuple[str, int, int, int, int, int], ...]
_Looked = tuple[list[Plugin], list[str]]

_seen: dict[Path, tuple[_Sign, _Looked]] = {}
_checked: dict[tuple[Any, ...], Mapping[str, Any]] = {}
_looking = threading.Lock()


class StandIn(BaseAgent):
    """An agent that is known here by its description only; its code runs in a process of its own."""

    name = "stand-in"

    async def analyze(self) -> list[Proposal]:
        """Refuse.

        Raises:
            AgentError: always.
        """
        msg = f"the plugin's agent {self.name!r} runs in a process of its own"
        raise AgentError(msg)


def look_at_plugins(folder: Path) -> _Looked:
    """As `agents.plugins.load_plugins`, with a stand-in for each agent.

    Looking again costs nothing while the files are the same.
    """
    with _looking:  # whoever else wants to know waits for the same look
        sign = _sign_of(folder)
        kept = _seen.get(folder)
        if kept is None or kept[0] != sign:
            kept = _seen[folder] = (sign, _look(folder, sign) if sign else ([], []))
        return kept[1]


def _look(folder: Path, sign: _Sign) -> _Looked:
    plugins: list[Plugin] = []
    problems: list[str] = []
    done: list[str] = []
    for _ in range(len(sign) + 1):  # each round but the last one ends at another plugin
        under_way = ""
        try:
            # Each plugin has its time; the processor's is for all of them together.
            request = {"folder": str(folder), "skip": done, "seconds": LOOK_S * (len(sign) + 1)}
            for line in _answers(request):
                if "end" in line:
                    return plugins, problems
                if "begins" in line:
                    under_way = line["begins"]
                    done.append(under_way)
                elif "problem" in line:
                    problems.append(line["problem"])
                else:
                    path = Path(line["path"])
                    agents = (_stand_in(path, sign, each) for each in line["agents"])
                    plugins.append(Plugin(path, tuple(agents)))
        except (AgentError, KeyError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, AgentError) else _DISTURBED
            what = f"plugin {under_way}" if under_way else f"plugin folder {folder}"
            problems.append(f"the {what} is left out: {why}")
            if not under_way:
                break
    return plugins, problems


def _stand_in(path: Path, sign: _Sign, known: Mapping[str, Any]) -> type[BaseAgent]:
    name = known["name"]

    def model(kind: str | None, fields: Mapping[str, Any] | None) -> type[BaseModel] | None:
        return None if fields is None else _distant_model(_Place(path, sign, name, kind), fields)

    payloads = {kind: model(kind, fields) for kind, fields in known["payloads"].items()}
    values = {
        "name": name,
        "description": known["description"],
        "every": known["every"],
        "Settings": model(None, known["settings"]),
        "payloads": payloads,
        "prompt_folders": tuple(Path(folder) for folder in known["folders"]),
        "__module__": __name__,
        "__qualname__": known["title"],
    }
    return type(str(known["title"]).rpartition(".")[2], (StandIn,), values)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model is: the plugin, as its folder was, the agent, and the kind of payload or None."""

    file: Path
    sign: _Sign
    agent: str
    kind: str | None

    def check(self, values: Any) -> Mapping[str, Any]:
        """The problems of values, or what they amount to.

        Raises:
            AgentLoadError: the plugin cannot be asked.
        """
        request = {
            "file": str(self.file),
            "agent": self.agent,
            "kind": self.kind,
            "values": tagged(values),
        }
        key = (self, json.dumps(request["values"], sort_keys=True))
        if key not in _checked:
            answer = next(_answers(request), None)
            if answer is None:
                msg = f"the plugin {self.file} could not be asked about its agent {self.agent!r}"
                raise AgentLoadError(msg)
            if len(_checked) >= _KEPT:
                _checked.clear()
            _checked[key] = answer
        return _checked[key]


def _distant_model(place: _Place, known: Mapping[str, Any]) -> type[BaseModel]:
    """A model that shows the same fields, and has values checked where the real one is."""
    from pydantic import AliasChoices, ConfigDict, Field, create_model  # noqa: PLC0415 - plugins need it

    fields: dict[str, Any] = {}
    for each in known["fields"]:
        alias = AliasChoices(*each["aliases"]) if each["aliases"] else None
        default = ... if each["required"] else each["default"]
        fields[each["name"]] = (
            Any,
            Field(default, validation_alias=alias, description=each["description"]),
        )
    config = ConfigDict(extra=known["extra"], populate_by_name=known["by_name"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the names are the plugin's choice
        made: type[BaseModel] = create_model("Distant", __config__=config, **fields)
    made.model_validate = classmethod(_validate(place))  # type: ignore[assignment, method-assign]  # its own
    return made


def _validate(place: _Place) -> Callable[..., Any]:
    def model_validate(cls: type[BaseModel], values: Any, **_: Any) -> _Checked:
        try:
            answer = place.check(values)
        except AgentLoadError as error:
            first = next(iter(values), "enabled")
            raise _as_validation_error(cls.__name__, [(first, f"could not be checked: {error}")]) from error
        if answer["problems"]:
            raise _as_validation_error(cls.__name__, answer["problems"])
        return _Checked(answer["dumped"])

    return model_validate


@dataclass(frozen=True, slots=True)
class _Checked:
    """Values that fit, as the real model wrote them out."""

    dumped: Any

    def model_dump(self, **_: Any) -> Any:
        """What the real model made of them."""
        return self.dumped


def _as_validation_error(title: str, problems: Any) -> Exception:
    from pydantic import ValidationError  # noqa: PLC0415 - plugins need it
    from pydantic_core import PydanticCustomError  # noqa: PLC0415 - as above

    return ValidationError.from_exception_data(
        title,
        [
            {
                "type": PydanticCustomError("distant", "{words}", {"words": words}),
                "loc": tuple(key.split(".")),
                "input": None,
            }
            for key, words in problems
        ],
    )


def _answers(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a look says, line by line, until it ends.

    Raises:
        AgentLoadError: it took too long, or its process ended before it had said all.
    """
    text = json.dumps({"seconds": LOOK_S, **request}).encode("ascii")
    with subprocess.Popen(  # noqa: S603 - this Python and our own file
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=small_environment(),
    ) as process:
        try:
            if process.stdin is not None and process.stdout is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(text)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                for line in _lines(process, process.stdout.fileno()):
                    yield json.loads(line)
            code = process.wait(LOOK_S)
        except (TimeoutError, subprocess.TimeoutExpired):
            msg = f"it was not imported within {LOOK_S:g} s"
            raise AgentLoadError(msg) from None
        except (ValueError, TypeError) as error:
            raise AgentLoadError(_DISTURBED) from error
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
    if code < 0:
        msg = f"the process that imports it was killed by {signal_name(code)}"
        raise AgentLoadError(msg)
    if code > 0:
        msg = f"the process that imports it ended with exit code {code}"
        raise AgentLoadError(msg)


def _lines(process: subprocess.Popen[bytes], fd: int) -> Iterator[bytes]:
    """The lines that come, each within its time, until the process ends.

    Raises:
        TimeoutError: one did not.
        ValueError: there are too many bytes.
    """
    rest, taken = b"", 0
    deadline = time.monotonic() + _START_S + LOOK_S
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if not selector.select(min(max(0.0, left), _POLL_S)):
                if process.poll() is not None:  # what it has started may hold the pipe open
                    return
                if left <= 0:
                    raise TimeoutError
                continue
            piece = os.read(fd, 64 * 1024)
            taken += len(piece)
            if taken > _MAX_BYTES:
                msg = "too much"
                raise ValueError(msg)
            *whole, rest = (rest + piece).split(b"\n")
            if whole:
                deadline = time.monotonic() + LOOK_S
                yield from whole
            if not piece:
                return


def _sign_of(folder: Path) -> _Sign:
    """What changes when a file in the folder is changed; empty without plugins."""
    try:
        files = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
        found = [(str(path), path.stat()) for path in (folder, *files)]
    except OSError:
        return ()
    sign = tuple((name, s.st_mtime_ns, s.st_size, s.st_ino, s.st_mode, s.st_uid) for name, s in found)
    return sign if files else ()


_TAGS: Mapping[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time_of_day.fromisoformat,
    "timedelta": lambda seconds: timedelta(seconds=seconds),
    "path": Path,
    "tuple": tuple,
}


def tagged(value: Any) -> Any:
    """Values of a configuration as JSON data, what JSON lacks marked by `$`."""
    if isinstance(value, Mapping):
        return {str(key): tagged(each) for key, each in value.items()}
    if isinstance(value, list):
        return [tagged(each) for each in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [tagged(each) for each in value]}
    if isinstance(value, timedelta):
        return {"$": "timedelta", "v": value.total_seconds()}
    for name, kind in (("datetime", datetime), ("date", date), ("time", time_of_day)):
        if isinstance(value, kind):
            return {"$": name, "v": value.isoformat()}
    return {"$": "path", "v": str(value)} if isinstance(value, Path) else value


def untagged(data: Any) -> Any:
    """What `tagged` made JSON of."""
    if isinstance(data, list):
        return [untagged(each) for each in data]
    if not isinstance(data, dict):
        return data
    if data.keys() == {"$", "v"} and data["$"] in _TAGS:
        return _TAGS[data["$"]](untagged(data["v"]))
    return {key: untagged(each) for key, each in data.items()}
