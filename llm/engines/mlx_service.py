"""Answers requests one step at a time: replies in one batch, or vectors a few texts at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, TextIO

from llm.engines.mlx_batch import Batch, Job
from llm.engines.mlx_bert import Embedding, Encoder, is_encoder
from llm.engines.mlx_model import Model
from llm.engines.mlx_protocol import Inbox, Message, Refused, StdinEnded, failure, say
from llm.engines.mlx_setup import import_mlx, import_mlx_lm, located


class Chat:
    """Answers conversations with one model.

    Args:
        mx: mlx.core.
        folder: where the model is.
        settings: the worker's settings line.
        inbox: knows which requests are still wanted.
    """

    def __init__(self, mx: Any, folder: Path, settings: Message, inbox: Inbox) -> None:
        model = self._model = Model(mx, import_mlx_lm(settings["install"]), folder, settings)
        self.abilities = model.abilities
        self._batch = Batch(
            mx,
            model.network,
            stop_tokens=model.stop_tokens,
            rows=settings["rows"],
            prefix_bytes=settings["prefix_bytes"],
            wanted=inbox.wanted,
        )

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._batch.idle

    def accept(self, request: Message) -> None:
        """Take a request in.

        Raises:
            Refused: it cannot be served.
        """
        if "embed" in request:
            raise Refused(
                "not_supported", "this model makes no vectors; set LLM_EMBED_MODEL to one that does"
            )
        model = self._model
        prompt = model.prompt(request)
        self._batch.add(
            Job(
                number=request["id"],
                prompt=prompt,
                shared=model.start(prompt, request),
                most=model.room(prompt, request),
                sampler=model.sampler(request),
                mask=model.mask(prompt, request),
                reply=model.reply(prompt, request),
                lasting=goes_on(request),
            )
        )

    def advance(self) -> list[Message]:
        """Go one step on; what is to be told."""
        return self._batch.advance()


class Vectors:
    """Turns texts into vectors with one encoder.

    Args:
        mx: mlx.core.
        folder: where the encoder is.
        settings: the worker's settings line.
        inbox: knows which requests are still wanted.
    """

    def __init__(self, mx: Any, folder: Path, settings: Message, inbox: Inbox) -> None:
        self.abilities: Message = {"chat": False, "tools": False, "thinking": False, "embedding": True}
        self._encoder = Encoder(mx, folder, settings)
        self._wanted = inbox.wanted
        self._line: deque[Embedding] = deque()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._line

    def accept(self, request: Message) -> None:
        """Take a request in.

        Raises:
            Refused: it cannot be served.
        """
        if "embed" not in request:
            raise Refused("not_supported", "this model only makes vectors; set LLM_MODEL to one that answers")
        self._line.append(Embedding(request["id"], request["embed"]))

    def advance(self) -> list[Message]:
        """Go one step on; what is to be told."""
        if not self._line:
            return []
        embedding = self._line[0]
        try:
            said = embedding.advance(self._encoder, self._wanted)
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            self._line.popleft()
            return [{"id": embedding.number, "error": failure(error), "done": True}]
        if embedding.finished:
            self._line.popleft()
        return said


def run(wire: TextIO, inbox: Inbox, settings: Message) -> int:
    """Load the model and answer until stdin ends; the exit status."""
    try:
        mx = import_mlx(settings["install"])
        folder = located(settings["model"], settings["way_out"])
        kind = Vectors if is_encoder(folder) else Chat
        service: Chat | Vectors = kind(mx, folder, settings, inbox)
    except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
        say(wire, [{"error": failure(error)}])
        return 1
    say(wire, [{"ready": service.abilities}])
    try:
        while True:
            _turn(wire, inbox, service)
    except StdinEnded:
        return 0


def _turn(wire: TextIO, inbox: Inbox, service: Chat | Vectors) -> None:
    """Take what came, go one step on with everything, and say what is to be told."""
    said: list[Message] = []
    for request in inbox.take(wait=service.idle):
        try:
            service.accept(request)
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            said.append({"id": request["id"], "error": failure(error), "done": True})
    said += service.advance()
    for message in said:
        if "done" in message:
            inbox.forget(message["id"])
    say(wire, said)


def goes_on(request: Message) -> bool:
    """Whether a later request is likely to begin with this one and its reply."""
    return bool(request["tools"]) or any(turn["role"] == "assistant" for turn in request["messages"])
