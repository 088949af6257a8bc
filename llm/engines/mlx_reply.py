"""One reply on its way out: tokens in, whole characters out, cut where the caller or the model says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.engines.mlx_protocol import Message, Refused, first_line
from llm.engines.mlx_text import ENDED, TEXT, THINKING, TOOL, Splitter


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How replies of one request look.

    Attributes:
        markers: where kinds of text begin and end, see `Splitter`.
        kind: of the text that comes first.
        streamed: whether the parent wants the text as it comes.
        most_bytes: a larger reply is refused.
        read_call: takes the text of a tool call and gives the call, or several.
    """

    markers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    kind: str = TEXT
    streamed: bool = False
    most_bytes: int = 0
    read_call: Callable[[str], Any] | None = None


class Reply:
    """The reply to one request.

    Args:
        detokenizer: mlx-lm's, fresh; it holds a character back until all its bytes are there.
        form: what the text may hold.
    """

    def __init__(self, detokenizer: Any, form: Form) -> None:
        self._detokenizer = detokenizer
        self._form = form
        self._splitter = Splitter(form.markers, form.kind)
        self._parts: dict[str, list[str]] = {TEXT: [], THINKING: []}
        self._call = ""
        self._calls: list[Any] = []
        self._unsent: list[Message] = []
        self._size = 0
        self._begun: set[str] = set()
        self.tokens = self.thinking_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether the text came upon what ends it."""
        return self._splitter.kind == ENDED

    def add(self, token: int) -> None:
        """Take one token that is text.

        Raises:
            Refused: the reply is too large, or a tool call in it cannot be read.
        """
        self.tokens += 1
        self.thinking_tokens += self._splitter.kind == THINKING
        self._detokenizer.add_token(token)
        self._take(self._detokenizer.last_segment)

    def end(self, *, counted: bool) -> None:
        """No token follows; `counted` says that the last one was no text (the end-of-text token).

        Raises:
            Refused: as in `add`.
        """
        self.tokens += counted
        self._detokenizer.finalize()
        self._take(self._detokenizer.last_segment)
        for kind, text in self._splitter.flush():
            self._put(kind, text)
        self._close_call()

    def news(self) -> list[Message]:
        """What is to be told to the parent since the last time, nothing unless the reply is streamed."""
        unsent, self._unsent = self._unsent, []
        return unsent

    def whole(self) -> Message:
        """The finished reply."""
        return {
            "text": "".join(self._parts[TEXT]),
            "thinking": "".join(self._parts[THINKING]),
            "tool_calls": self._calls,
            "completion_tokens": self.tokens,
            "thinking_tokens": self.thinking_tokens,
        }

    def _take(self, text: str) -> None:
        if not text:
            return
        for kind, part in self._splitter.feed(text):
            self._put(kind, part)
        if self._splitter.kind != TOOL:
            self._close_call()

    def _put(self, kind: str, text: str) -> None:
        if kind not in self._begun and (kind == THINKING or THINKING in self._begun):
            text = text.lstrip()  # the line breaks that templates put round what the model thinks
            if not text:
                return
        self._begun.add(kind)
        self._size += len(text.encode("utf-8", errors="replace"))
        if self._size > self._form.most_bytes:
            message = f"the reply is larger than {self._form.most_bytes} bytes (LLM_MAX_REPLY_BYTES)"
            raise Refused("bad_reply", message)
        if kind == TOOL:
            self._call += text
            return
        self._parts[kind].append(text)
        if self._form.streamed:
            self._unsent.append({kind: text})

    def _close_call(self) -> None:
        """Read the tool call whose end was seen."""
        text, self._call = self._call, ""
        if not text.strip() or self._form.read_call is None:
            return
        try:
            read = self._form.read_call(text)
            calls = [
                {"name": str(call["name"]), "arguments": dict(call["arguments"])}
                for call in (read if isinstance(read, list) else [read])
            ]
        except Exception as error:  # a model may write anything, and each parser fails in its own way
            message = f"the model's tool call cannot be read ({first_line(error)})"
            raise Refused("bad_reply", message) from error
        self._calls += calls
