"""Text on its way into a model and out of it: plain functions and a splitter, without the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm.engines.mlx_protocol import Message

TEXT, THINKING, TOOL = "text", "thinking", "tool"
"""What a piece of a reply can be."""

ENDED = ""
"""Where a marker leads that ends the reply."""


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as plain text, for models that were given no chat template."""
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def fold_system(messages: list[Message]) -> list[Message]:
    """The conversation with a leading system turn put at the head of the first turn after it."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


class Splitter:
    """Cuts a stream of text at markers, which may come in pieces, and says what each part is.

    Text that may yet turn out to be the beginning of a marker is held back until that is known.

    Args:
        markers: for each kind of text the markers that end it, with the kind that follows; `ENDED` follows
            a marker that ends the reply.
        kind: of the text that comes first.
    """

    def __init__(self, markers: Mapping[str, Mapping[str, str]], kind: str = TEXT) -> None:
        self._markers = {name: dict(ends) for name, ends in markers.items()}
        self.kind = kind
        self._held = ""

    def feed(self, text: str) -> list[tuple[str, str]]:
        """The parts that are certain after `text`, each with its kind; none may be empty."""
        parts: list[tuple[str, str]] = []
        rest = self._held + text
        while self.kind != ENDED:
            ends = self._markers.get(self.kind, {})
            found = [(place, -len(marker), marker) for marker in ends if (place := rest.find(marker)) >= 0]
            if not found:
                break
            place, _, marker = min(found)  # the first one; of two that begin there, the longer
            parts.append((self.kind, rest[:place]))
            rest = rest[place + len(marker) :]
            self.kind = ends[marker]
        keep = 0 if self.kind == ENDED else self._beginning(rest)
        certain = "" if self.kind == ENDED else rest[: len(rest) - keep]
        self._held = rest[len(rest) - keep :] if keep else ""
        parts.append((self.kind, certain))
        return [(kind, part) for kind, part in parts if part]

    def flush(self) -> list[tuple[str, str]]:
        """What was held back and is no marker after all, because nothing follows."""
        held, self._held = self._held, ""
        return [(self.kind, held)] if held else []

    def _beginning(self, text: str) -> int:
        """How much of the end of `text` is the beginning of a marker."""
        ends = self._markers.get(self.kind)
        if not ends:
            return 0
        longest = min(len(text), max(map(len, ends)) - 1)
        sizes = range(longest, 0, -1)
        return next((n for n in sizes if any(marker.startswith(text[-n:]) for marker in ends)), 0)
