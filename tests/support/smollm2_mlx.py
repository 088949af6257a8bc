"""The small packaged model as mlx-lm wants it: a real model that answers in sentences, without a download.

mlx reads the packaged GGUF file itself. What is left to do is to rename the tensors, to undo the order in
which llama.cpp keeps the rows of the query and key matrices, and to write the tokenizer that the file holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm.backends import llamacpp

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3
"""The type of tokens that are no text, as GGUF numbers them."""

_GROUP = 32


def make_smollm2(folder: Path) -> Path:
    """Write the model into `folder` and return the folder; 540 MB of 32-bit floats, in about 3 s.

    In a process of its own, whose memory is gone afterwards.
    """
    weights = llamacpp.model_file("smollm2:135m")
    command = [sys.executable, __file__, str(weights), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import mlx.core as mx

    # Without Metal, mlx computes with 32-bit floats 20 and more times as fast as with 16-bit ones.
    mx.set_default_device(mx.cpu)
    folder.mkdir(parents=True)
    loaded: Any = mx.load(str(gguf), return_metadata=True)
    packed, about = loaded
    config = _config(about)
    plain = _unpacked(mx, packed)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {_name(key): _in_order(key, value, heads) for key, value in plain.items()}
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    _write(folder / "config.json", config)
    _write_tokenizer(folder, about)


def _unpacked(mx: Any, packed: dict[str, Any]) -> dict[str, Any]:
    """Every weight as 32-bit floats; quantised ones come with their scales and biases."""
    plain: dict[str, Any] = {}
    for key, stored in packed.items():
        base, _, part = key.rpartition(".")
        if part != "weight":
            continue
        value = stored
        if f"{base}.scales" in packed:
            scales = packed[f"{base}.scales"]
            bits = stored.shape[-1] * 32 // (scales.shape[-1] * _GROUP)
            value = mx.dequantize(stored, scales, packed[f"{base}.biases"], group_size=_GROUP, bits=bits)
        plain[key] = value.astype(mx.float32)
    return plain


def _name(key: str) -> str:
    first, *rest = key.split(".")
    if first != "blk":
        return f"{_TOP[first]}.{rest[-1]}"
    number, part, last = rest
    return f"model.layers.{number}.{_LAYER[part]}.{last}"


def _in_order(key: str, value: Any, heads: dict[str, int]) -> Any:
    """llama.cpp keeps the two halves of each head's rows interleaved."""
    count = heads.get(key.split(".")[2]) if key.startswith("blk.") else None
    if count is None:
        return value
    return value.reshape(count, value.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(value.shape)


def _config(about: dict[str, Any]) -> dict[str, Any]:
    def fact(key: str) -> Any:
        return about[f"llama.{key}"].item()

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": fact("embedding_length"),
        "num_hidden_layers": fact("block_count"),
        "intermediate_size": fact("feed_forward_length"),
        "num_attention_heads": fact("attention.head_count"),
        "num_key_value_heads": fact("attention.head_count_kv"),
        "rms_norm_eps": fact("attention.layer_norm_rms_epsilon"),
        "rope_theta": fact("rope.freq_base"),
        "max_position_embeddings": fact("context_length"),
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "bos_token_id": about["tokenizer.ggml.bos_token_id"].item(),
        "eos_token_id": about["tokenizer.ggml.eos_token_id"].item(),
        "hidden_act": "silu",
    }


def _write_tokenizer(folder: Path, about: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = about["tokenizer.ggml.tokens"]
    kinds = about["tokenizer.ggml.token_type"].tolist()
    merges = [tuple(pair.split(" ", 1)) for pair in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{ours}_token": words[about[f"tokenizer.ggml.{theirs}_token_id"].item()]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": about["tokenizer.chat_template"],
        **named,
    }
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
