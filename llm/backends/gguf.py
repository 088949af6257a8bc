"""What a GGUF file says about itself: the key-value pairs at its beginning, without its weights.

Source of the format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MOST_PAIRS = 10_000


class NotGGUF(ValueError):
    """The file is damaged or of another format."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The scalars and texts of a file; arrays (the vocabulary) are left out.

    Attributes:
        values: by key, such as "general.architecture".
    """

    values: dict[str, Any]

    def about(self, key: str) -> Any:
        """The value of a key that the architecture's name leads ("llama.context_length"), None if absent."""
        return self.values.get(f"{self.values.get('general.architecture')}.{key}")

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained with, 0 if the file does not say."""
        found = self.about("context_length")
        return found if isinstance(found, int) else 0

    @property
    def embeds(self) -> bool:
        """Whether it turns text into one vector: an encoder, or a model with a pooling of its own."""
        return self.about("pooling_type") is not None or self.about("attention.causal") is False

    @property
    def chat_template(self) -> str:
        """Its Jinja template, empty without one."""
        return str(self.values.get("tokenizer.chat_template") or "")

    @property
    def takes_tools(self) -> bool:
        """Whether its template has a place for tools."""
        return "tools" in self.chat_template

    @property
    def thinks(self) -> bool:
        """Whether its template knows of thinking."""
        return "enable_thinking" in self.chat_template or "<think>" in self.chat_template


def read_header(path: Path) -> GGUFHeader:
    """Read the key-value pairs; for a large vocabulary a tenth of a second, so not on an event loop.

    Raises:
        NotGGUF: the file is no GGUF file, or is cut off.
        OSError: it cannot be read.
    """
    with _mapped(path) as data:
        try:
            return GGUFHeader(dict(_pairs(data)))
        except (struct.error, UnicodeDecodeError, LookupError, OverflowError, RecursionError) as error:
            msg = f"{path} has no readable GGUF header"
            raise NotGGUF(msg) from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # empty
            msg = f"{path} is empty"
            raise NotGGUF(msg) from error
        with data:
            yield data


def _pairs(data: mmap.mmap) -> Iterator[tuple[str, Any]]:
    magic, version, _tensors, pairs = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in {2, 3} or pairs > _MOST_PAIRS:
        msg = "no GGUF file of version 2 or 3"
        raise NotGGUF(msg)
    at = 24
    for _ in range(pairs):
        key, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        if kind == _ARRAY:
            at = _skip_array(data, at + 4)
            continue
        value, at = _value(data, at + 4, kind)
        yield key, value


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise IndexError
    return data[at + 8 : end].decode("utf-8"), end


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _text(data, at)
    form = _SCALARS[kind]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def _skip_array(data: mmap.mmap, at: int) -> int:
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _STRING:
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + int(length(data, at)[0])
        return at
    if kind == _ARRAY:
        for _ in range(count):
            at = _skip_array(data, at)
        return at
    return at + int(count) * struct.calcsize(_SCALARS[kind])
