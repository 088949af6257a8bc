"""Answers requests one step at a time: replies in one batch, vectors a few texts at a time between them."""

from __future__ import annotations

from collections import deque
from typing import Any, TextIO

from llm.engines.mlx_batch import Batch, Job
from llm.engines.mlx_bert import Embedding, Encoder, is_encoder
from llm.engines.mlx_model import Model
from llm.engines.mlx_protocol import Inbox, Message, Refused, StdinEnded, failure, say
from llm.engines.mlx_setup import import_engine, located


class Service:
    """A worker's life: load, then answer until stdin ends.

    Args:
        wire: to the parent.
        inbox: from the parent.
    """

    def __init__(self, wire: TextIO, inbox: Inbox) -> None:
        self._wire = wire
        self._inbox = inbox
        self._settings: Message = {}
        self._mx: Any = None
        self._model: Model | None = None
        self._batch: Batch | None = None
        self._encoder: Encoder | None = None
        self._embeddings: deque[Embedding] = deque()

    def run(self, settings: Message) -> int:
        """Load the model and answer until stdin ends; the exit status."""
        self._settings = settings
        try:
            abilities = self._load()
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            say(self._wire, [{"error": failure(error)}])
            return 1
        say(self._wire, [{"ready": abilities}])
        try:
            while True:
                self._turn()
        except StdinEnded:
            return 0

    def _turn(self) -> None:
        """Take what came, go one step on with everything, and say what is to be told."""
        said: list[Message] = []
        for request in self._inbox.take(wait=self._is_idle()):
            said += self._accept(request)
        if self._batch is not None:
            said += self._batch.advance()
        said += self._embed()
        for message in said:
            if "done" in message:
                self._inbox.forget(message["id"])
        say(self._wire, said)

    def _is_idle(self) -> bool:
        return not self._embeddings and (self._batch is None or self._batch.idle)

    def _load(self) -> Message:
        settings = self._settings
        self._mx, mlx_lm = import_engine(settings["install"])
        folder = located(settings["model"], settings["way_out"])
        if is_encoder(folder):
            settings["encoder"] = str(folder)
            self._load_encoder()
            return {"text": False, "tools": False, "thinking": False, "vectors": True}
        model = self._model = Model(self._mx, mlx_lm, folder, settings)
        self._batch = Batch(
            self._mx,
            model.network,
            stop_tokens=model.stop_tokens,
            rows=settings["rows"],
            prefix_bytes=settings["prefix_bytes"],
            check=self._inbox.check,
        )
        return {"text": True, **model.abilities, "vectors": bool(settings.get("encoder"))}

    def _load_encoder(self) -> Encoder:
        """The encoder, loaded when vectors are first asked for."""
        name = self._settings.get("encoder")
        if not name:
            raise Refused("not_supported", f"{self._settings['model']} makes no vectors; use a BERT encoder")
        if self._encoder is None:
            self._encoder = Encoder(self._mx, name, self._settings["way_out"])
        return self._encoder

    def _accept(self, request: Message) -> list[Message]:
        """Take a request in; what is to be told if it cannot be served."""
        try:
            if "embed" in request:
                self._load_encoder()
                self._embeddings.append(Embedding(request["id"], request["embed"]))
            else:
                self._line_up(request)
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            return [{"id": request["id"], "error": failure(error), "done": True}]
        return []

    def _line_up(self, request: Message) -> None:
        model, batch = self._model, self._batch
        if model is None or batch is None:
            raise Refused("not_supported", f"{self._settings['model']} only makes vectors; use a chat model")
        prompt = model.prompt(request)
        batch.add(
            Job(
                number=request["id"],
                prompt=prompt,
                shared=model.start(prompt, request),
                most=model.room(prompt, request),
                sampler=model.sampler(request),
                mask=model.mask(request),
                reply=model.reply(prompt, request),
                lasting=bool(request["tools"])
                or any(turn["role"] == "assistant" for turn in request["messages"]),
            )
        )

    def _embed(self) -> list[Message]:
        if not self._embeddings or self._encoder is None:
            return []
        embedding = self._embeddings[0]
        try:
            said = embedding.advance(self._encoder, self._inbox.check)
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            self._embeddings.popleft()
            return [{"id": embedding.number, "error": failure(error), "done": True}]
        if embedding.finished:
            self._embeddings.popleft()
        return said
