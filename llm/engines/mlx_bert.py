"""A BERT encoder in plain mlx: texts in, one unit vector for each out; for MiniLM, BGE and their kin."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm.engines.mlx_protocol import Message, Refused, first_line

_TEXTS = 16
"""Most texts at once; replies that are under way wait meanwhile."""

_POOLINGS = ("pooling_mode_mean_tokens", "pooling_mode_cls_token")
_TOKENIZER = ("tokenizer.json", "config.json")


class Encoder:
    """One loaded encoder.

    Args:
        mx: mlx.core.
        folder: where the model is.
        settings: the worker's settings line.

    Raises:
        Refused: it cannot be loaded, or is no BERT.
    """

    def __init__(self, mx: Any, folder: Path, settings: Message) -> None:
        self._mx = mx
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._heads: int = about["num_attention_heads"]
            self._layers: int = about["num_hidden_layers"]
            self._precision: float = about.get("layer_norm_eps", 1e-12)
            self._weights = _weights(mx, folder)
            self._tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(
                str(folder / "tokenizer.json")
            )
            most = min(about["max_position_embeddings"], _most_tokens(folder))
            self._tokenizer.enable_truncation(most)
            self._tokenizer.enable_padding()
            self._first_token = _pools_first_token(folder)
        except Exception as error:  # damaged, another architecture, ...
            text = f"mlx cannot load {settings['model']} ({first_line(error)}); {settings['way_out']}"
            raise Refused("model_not_found", text) from error

    def __call__(self, texts: Sequence[str]) -> tuple[Any, int]:
        """A matrix with one row for each text, and how many tokens they had."""
        mx = self._mx
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = mx.array([each.ids for each in encoded])
        seen = mx.array([each.attention_mask for each in encoded])
        states = self._states(ids, mx.where(seen[:, None, None, :] == 1, 0.0, -1e9))
        if self._first_token:
            pooled = states[:, 0]
        else:
            weight = seen[..., None].astype(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1)
        unit = pooled / mx.maximum(mx.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        mx.eval(unit)
        return unit, sum(sum(each.attention_mask) for each in encoded)

    def _states(self, ids: Any, mask: Any) -> Any:
        """The last layer's states; BERT, "Attention is all you need" with post-layer norms."""
        mx, weights = self._mx, self._weights
        rows, length = ids.shape
        state = self._norm(
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][:length]
            + weights["embeddings.token_type_embeddings.weight"][0],
            "embeddings",
        )
        for number in range(self._layers):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self._dense(state, f"{layer}.attention.self.{part}")
                .reshape(rows, length, self._heads, -1)
                .transpose(0, 2, 1, 3)
                for part in ("query", "key", "value")
            )
            attended = mx.fast.scaled_dot_product_attention(
                query, key, value, scale=query.shape[-1] ** -0.5, mask=mask
            )
            attended = attended.transpose(0, 2, 1, 3).reshape(rows, length, -1)
            attended = self._dense(attended, f"{layer}.attention.output.dense")
            state = self._norm(state + attended, f"{layer}.attention.output")
            inner = self._dense(state, f"{layer}.intermediate.dense")
            inner = inner * (1 + mx.erf(inner / 2**0.5)) / 2
            state = self._norm(state + self._dense(inner, f"{layer}.output.dense"), f"{layer}.output")
        return state

    def _norm(self, state: Any, place: str) -> Any:
        weight = self._weights[f"{place}.LayerNorm.weight"]
        bias = self._weights[f"{place}.LayerNorm.bias"]
        return self._mx.fast.layer_norm(state, weight, bias, self._precision)

    def _dense(self, state: Any, place: str) -> Any:
        weight, bias = self._weights[f"{place}.weight"], self._weights[f"{place}.bias"]
        return self._mx.addmm(bias, state, weight.T)


class Embedding:
    """One request for vectors, answered a few texts at a time.

    Args:
        number: the request's id.
        texts: what to embed.
    """

    def __init__(self, number: int, texts: Sequence[str]) -> None:
        self.number = number
        self._texts = texts
        # Texts of one length side by side: padding is computed like any token.
        self._left = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        self._tokens = 0

    def advance(self, encoder: Encoder, wanted: Callable[[int], bool]) -> list[Message]:
        """Embed the next few texts and say what is to be told; nothing when nobody waits any more."""
        if not wanted(self.number):
            self._left = []
            return []
        places, self._left = self._left[:_TEXTS], self._left[_TEXTS:]
        matrix, tokens = encoder([self._texts[place] for place in places])
        self._tokens += tokens
        said: list[Message] = [{"id": self.number, "places": places, "vectors": _packed(matrix)}]
        if not self._left:
            said.append({"id": self.number, "done": True, "prompt_tokens": self._tokens})
        return said

    @property
    def finished(self) -> bool:
        """Whether nothing is left to embed."""
        return not self._left


def is_encoder(folder: Path) -> bool:
    """Whether the model in a folder is a BERT."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # loading the model will say it better
        return False
    return isinstance(about, dict) and about.get("model_type") == "bert"


def _weights(mx: Any, folder: Path) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights.update(mx.load(str(file)))
    kept = {
        name.removeprefix("bert."): value for name, value in weights.items() if "position_ids" not in name
    }
    if mx.default_device() == mx.cpu:
        kept = {name: value.astype(mx.float32) for name, value in kept.items()}
    mx.eval(kept)
    return kept


def _most_tokens(folder: Path) -> int:
    """Most tokens of one text that the model was trained for (sentence-transformers' own file)."""
    file = folder / "sentence_bert_config.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["max_seq_length"]) if file.is_file() else 512


def _pools_first_token(folder: Path) -> bool:
    """Whether a text's vector is that of its first token; the mean of all of them otherwise."""
    file = folder / "1_Pooling" / "config.json"
    about = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"pooling_mode_mean_tokens": True}
    )
    chosen = [name for name in _POOLINGS if about.get(name)]
    if len(chosen) != 1:
        raise ValueError("its pooling is neither the mean of the tokens nor the first token")
    return chosen[0] == "pooling_mode_cls_token"


def _packed(matrix: Any) -> str:
    """The numbers as little-endian 32-bit floats in base64: a sixth of what they are as JSON."""
    return base64.b64encode(importlib.import_module("numpy").asarray(matrix, "<f4").tobytes()).decode("ascii")
