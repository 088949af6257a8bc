"""Run one mlx-lm model: JSON lines in, JSON lines out, until stdin ends; see `llm.backends.child`.

One thread, the main one, owns everything of mlx: a model loaded in one thread and used in another fails.
A second thread reads stdin. The settings line holds: `model` (folder or hub id), `context_length`,
`max_reply_bytes`, `environ` (variables that must not be in the process's environment block), `scratch` (a
private folder for what mlx compiles), `install` and `way_out` (how to get engine and model).

A request is {"id", "messages", "temperature", "top_p", "max_tokens", "seed", "schema"}; its answer
{"id", "text", "finish", "prompt_tokens", "completion_tokens"} or {"id", "error": {"code", "message"}}.
{"cancel": id} stops a request between two tokens or two pieces of its prompt; there is no answer then.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import resource
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_LEAVE_SECONDS = 1.0
"""A step of a large model cannot be interrupted, and there is nothing to save: leave soon."""

_PREFILL_STEP = 64
"""Prompt tokens between two looks at whether the caller is gone: 0.1 s instead of 8.5 s with 2048."""

_CACHE_BYTES = 256 * 1024 * 1024
"""Freed buffers that mlx may keep; its default is all the memory there is (mlx-lm issue 1757)."""

_OPENBLAS = ("libopenblas.so.0", "libopenblas.so")

Message = dict[str, Any]


class Refused(Exception):
    """A request or a model that cannot be served; `code` is that of an error class of `llm.errors`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cancelled(Exception):
    """Nobody waits for this request any more."""


def take_stdout() -> TextIO:
    """Keep stdout for the protocol and send what the engine prints there to stderr."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)
    return wire


class Inbox:
    """What the parent says: a queue of requests, of which some are no longer wanted."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lines = lines
        self._wanted: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            message = json.loads(line)
            if "cancel" in message:
                self._wanted.discard(message["cancel"])
            else:
                self._wanted.add(message["id"])
                self.requests.put(message)
        self._wanted.clear()
        self.requests.put(None)
        time.sleep(_LEAVE_SECONDS)
        os._exit(0)

    def check(self, number: int) -> None:
        """Raise Cancelled if nobody waits for request `number` any more."""
        if number not in self._wanted:
            raise Cancelled

    def forget(self, number: int) -> None:
        """Request `number` is done with."""
        self._wanted.discard(number)


@contextmanager
def open_file_limit_kept() -> Iterator[None]:
    """`import mlx_lm` sets RLIMIT_NOFILE to (2048, 4096), and fails where the hard limit is lower."""
    real = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = real


def preload_openblas() -> None:
    """Put OpenBLAS before the reference BLAS that mlx-cpu bundles: 14 times as fast, if it is installed."""
    if sys.platform != "linux":
        return
    for name in _OPENBLAS:
        with suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return


def prepare_environment(settings: Message) -> None:
    """Set what the libraries read from the environment, before they are imported."""
    os.environ.update(settings["environ"])
    os.environ["TMPDIR"] = settings[
        "scratch"
    ]  # else mlx loads libraries from a fixed, guessable place in /tmp
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) - 1)))
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def import_engine(install: str) -> tuple[Any, Any]:
    """mlx.core and mlx_lm."""
    preload_openblas()
    try:
        with open_file_limit_kept():
            mx = importlib.import_module("mlx.core")
            mlx_lm = importlib.import_module("mlx_lm")
    except ImportError as error:
        raise Refused("connection", f"mlx-lm cannot be imported ({error}); {install}") from error
    mx.set_cache_limit(_CACHE_BYTES)
    # Raising the wired limit takes macOS kernels down under load (mlx issue 3186). The package's attribute
    # of that name is a function, so the module is taken from the import system.
    generate: Any = importlib.import_module("mlx_lm.generate")
    generate.maybe_set_recommended_wired_limit = lambda: None
    return mx, mlx_lm


class Model:
    """A loaded model and its tokenizer."""

    def __init__(self, settings: Message) -> None:
        self._mx, self._lm = import_engine(settings["install"])
        self._context: int = settings["context_length"]
        self._most_bytes: int = settings["max_reply_bytes"]
        self._install: str = settings["install"]
        self._way_out: str = settings["way_out"]
        self._model, self._tokenizer = self._load(settings["model"])
        self._grammar_tokenizer: Any = None

    def _load(self, name: str) -> tuple[Any, Any]:
        try:
            model, tokenizer = self._lm.load(name)
        except Exception as error:  # not on the hub, no network, no weights, an unknown architecture, ...
            text = f"mlx-lm cannot load {name} ({_short(error)}); {self._way_out}"
            raise Refused("model_not_found", text) from error
        if self._mx.default_device() == self._mx.cpu:
            # Without Metal, 16-bit floats are 20 and more times slower than 32-bit ones.
            model.set_dtype(self._mx.float32)
            self._mx.eval(model.parameters())
        return model, tokenizer

    def answer(self, request: Message, check: Callable[[], None]) -> Message:
        """Generate the answer to one request; `check` is called between the steps and may raise."""
        prompt = self._prompt(request["messages"])
        room = self._context - len(prompt)
        if room < 1:
            text = (
                f"the prompt has {len(prompt)} tokens and the context {self._context}; shorten the prompt or "
                "raise LLM_CONTEXT_LENGTH (up to what the model was trained with)"
            )
            raise Refused("bad_request", text)
        seed = request["seed"]
        self._mx.random.seed(secrets.randbits(63) if seed is None else seed % 2**64)
        return self._generate(prompt, request, min(request["max_tokens"], room), check)

    def _generate(
        self, prompt: Sequence[int], request: Message, most: int, check: Callable[[], None]
    ) -> Message:
        steps = self._lm.stream_generate(
            self._model,
            self._tokenizer,
            list(prompt),
            max_tokens=most,
            sampler=self._sampler(request),
            logits_processors=self._processors(request["schema"]),
            prefill_step_size=_PREFILL_STEP,
            prompt_progress_callback=lambda *_: check(),
        )
        parts: list[str] = []
        size = 0
        try:
            for step in steps:
                check()
                parts.append(step.text)
                size += len(step.text.encode("utf-8", errors="replace"))
                if size > self._most_bytes:
                    text = f"the reply is larger than {self._most_bytes} bytes (LLM_MAX_REPLY_BYTES)"
                    raise Refused("bad_reply", text)
        finally:
            steps.close()  # in this thread: mlx's streams must not be destroyed in another
        return {
            "text": "".join(parts),
            "finish": step.finish_reason,
            "prompt_tokens": step.prompt_tokens,
            "completion_tokens": step.generation_tokens,
        }

    def _sampler(self, request: Message) -> Any:
        make = importlib.import_module("mlx_lm.sample_utils").make_sampler
        # None leaves it to the engine, and mlx-lm's own default is greedy.
        return make(temp=request["temperature"] or 0.0, top_p=request["top_p"] or 0.0)

    def _prompt(self, messages: list[Message]) -> list[int]:
        if not self._tokenizer.has_chat_template:
            return list(self._tokenizer.encode(transcript(messages)))
        jinja = importlib.import_module("jinja2")
        for turns in (messages, fold_system(messages)):
            with suppress(jinja.TemplateError):  # some templates know no system turn
                return list(
                    self._tokenizer.apply_chat_template(
                        turns, add_generation_prompt=True, enable_thinking=False
                    )
                )
        raise Refused("bad_request", "the model's chat template does not take this order of turns")

    def _processors(self, schema: Message | None) -> list[Any]:
        if schema is None:
            return []
        try:
            guidance = importlib.import_module("llguidance")
            in_numpy = importlib.import_module("llguidance.numpy")
            if self._grammar_tokenizer is None:
                self._grammar_tokenizer = importlib.import_module("llguidance.hf").from_tokenizer(
                    self._tokenizer._tokenizer,  # noqa: SLF001 - the wrapper forwards calls, not its type
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )
        except ImportError as error:
            text = f"replies that fit a schema need llguidance ({error}); {self._install}"
            raise Refused("connection", text) from error
        except TypeError as error:
            text = f"this model's tokenizer cannot be held to a schema: {_short(error)}"
            raise Refused("bad_request", text) from error
        return [SchemaMask(self._mx, guidance.LLMatcher, in_numpy, self._grammar_tokenizer, schema)]


class SchemaMask:
    """Lets only tokens through that keep the reply on the way to valid JSON of one schema.

    A logits processor of mlx-lm. llguidance's own mlx kernel needs Metal; this mask is plain mlx.
    """

    def __init__(self, mx: Any, matcher: Any, in_numpy: Any, tokenizer: Any, schema: Message) -> None:
        # Flexible white space is an endless supply of valid tokens; `lenient` leaves what a grammar cannot
        # say (uniqueItems, unknown formats) to the check of the whole reply.
        grammar = matcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False, "lenient": True}
        )
        self._mx = mx
        self._matcher = matcher(tokenizer, grammar)
        if self._matcher.is_error():
            raise Refused("bad_request", f"the schema cannot be followed: {self._matcher.get_error()}")
        self._fill = in_numpy.fill_next_token_bitmask
        self._mask = in_numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
        self._eos = tokenizer.eos_token
        self._started = False

    def __call__(self, tokens: Any, logits: Any) -> Any:
        """The logits with every token ruled out that must not come next."""
        # The first call carries the prompt, which is not part of the reply.
        if self._started and not self._matcher.is_stopped():
            self._matcher.consume_token(tokens[-1].item())
        self._started = True
        mx = self._mx
        if self._matcher.is_stopped():  # it stops before the end-of-text token, which must still come
            allowed = mx.arange(logits.shape[-1]) == self._eos
        else:
            self._fill(self._matcher, self._mask, 0)
            allowed = self._unpacked(logits.shape[-1])
        return mx.where(allowed, logits, -mx.inf)

    def _unpacked(self, size: int) -> Any:
        """The bit mask as one boolean for each logit; a model may have more logits than tokens."""
        mx = self._mx
        words = mx.array(self._mask[0].view("uint32"))
        bits = ((words[:, None] >> mx.arange(32, dtype=mx.uint32)) & 1).reshape(-1).astype(mx.bool_)
        missing = size - bits.shape[0]
        return bits[:size] if missing <= 0 else mx.concatenate([bits, mx.zeros(missing, dtype=mx.bool_)])


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


def _short(error: BaseException) -> str:
    """The first line of an exception's text, without the help pages that huggingface_hub adds."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _failure(error: Exception) -> Message:
    if isinstance(error, Refused):
        return {"code": error.code, "message": str(error)}
    return {"code": "server", "message": f"mlx-lm failed: {_short(error)}"}


class Worker:
    """Answers requests one after the other."""

    def __init__(self, wire: TextIO, inbox: Inbox) -> None:
        self._wire = wire
        self._inbox = inbox

    def say(self, **message: Any) -> None:
        """Write one line to the parent."""
        self._wire.write(json.dumps(message, ensure_ascii=False) + "\n")
        self._wire.flush()

    def run(self, settings: Message) -> int:
        """Load the model and answer until stdin ends; the exit status."""
        try:
            model = Model(settings)
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            self.say(error=_failure(error))
            return 1
        self.say(ready={})
        while (request := self._inbox.requests.get()) is not None:
            self._serve(model, request)
        return 0

    def _serve(self, model: Model, request: Message) -> None:
        number = request["id"]

        def check() -> None:
            self._inbox.check(number)

        try:
            check()
            self.say(id=number, **model.answer(request, check))
        except Cancelled:
            pass
        except Exception as error:  # noqa: BLE001 - the parent is told whatever it was
            self.say(id=number, error=_failure(error))
        finally:
            self._inbox.forget(number)


def main() -> int:
    """Serve until stdin ends."""
    wire = take_stdout()
    settings = json.loads(sys.stdin.readline())
    prepare_environment(settings)
    return Worker(wire, Inbox(sys.stdin)).run(settings)


if __name__ == "__main__":
    sys.exit(main())
