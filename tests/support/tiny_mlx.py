"""Tiny models for mlx-lm, made on the spot: no download, 0.1 s.

Random weights are the best adversary of structured output: nothing but the mask makes the reply valid. And
weights can be written so that the model says one thing word for word: each token leads to the next.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "the garden needs water, ten kg of tomatoes are offered near the bridge",
    "¿quién necesita verduras frescas? niñez, año, pingüino",
    '{"action": "wait", "priority": 3, "reason": "no rain", "tags": ["a", "b"]}',
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML

WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for tool_call in m.tool_calls or [] %}{% set tool_call = tool_call.function %}{{ '<tool_call>' }}"
    "{{ tool_call.name }} {{ tool_call.arguments | tojson }}{{ '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def make_tiny_model(
    folder: Path, *, template: str | None = CHATML, weights: str = "float32", says: Sequence[str] = ()
) -> Path:
    """Write a model that `mlx_lm.load` takes into `folder`, and return the folder.

    Args:
        folder: is made.
        template: chat template, None for a model without one.
        weights: type of the numbers, "float32" or "float16".
        says: what it answers, piece by piece, whatever it is asked; no piece twice. A piece of ASCII is one
            token, any other is spelled in bytes. Empty for random weights.
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.add_tokens([piece for piece in says if piece.isascii()])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        about["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    config = {
        **_SHAPE,
        "vocab_size": tokenizer.get_vocab_size() + 7,  # real models pad: more logits than tokens
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
        "tie_word_embeddings": not says,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    chain = _chain(tokenizer, says) if says else []
    _save_weights(folder / "model.safetensors", config, weights, chain)
    return folder


def make_unbatchable_model(folder: Path) -> Path:
    """Write a tiny Llama 4 of random weights, whose key-value caches mlx-lm cannot put into one batch."""
    make_tiny_model(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["model_type"] = "llama4"
    settings["text_config"] = {**_SHAPE, **_LLAMA4, "vocab_size": settings["vocab_size"]}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    # In a process of its own, because mlx keeps its memory and its names of weights are known to it alone.
    subprocess.run([sys.executable, "-c", _RANDOM_WEIGHTS, str(folder)], check=True)
    return folder


_LLAMA4 = {
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "attention_bias": False,
    "attention_chunk_size": 64,
    "head_dim": 16,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 128,
    "num_experts_per_tok": 1,
    "num_local_experts": 2,
    "rope_scaling": None,
    "use_qk_norm": False,
}

_RANDOM_WEIGHTS = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama4 import Model, ModelArgs

folder = Path(sys.argv[1])
mx.random.seed(0)
model = Model(ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
weights = dict(tree_flatten(model.parameters()))
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
"""


def make_adapter(folder: Path, *, strength: float, name: str = "model.layers.0.self_attn.q_proj") -> Path:
    """Write a LoRA adapter for the tiny model into `folder`; with strength 0 it changes nothing."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    rank, width = 4, _SHAPE["hidden_size"]
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": rank, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(1)
    tensors = {
        f"{name}.lora_a": random.normal(0, 1, (width, rank)).astype("float32"),
        f"{name}.lora_b": (strength * random.normal(0, 1, (rank, width))).astype("float32"),
    }
    save_file(tensors, folder / "adapters.safetensors")
    return folder


def _chain(tokenizer: Any, says: Sequence[str]) -> list[int]:
    """The tokens of an answer, with the last one of the prompt before it and the end after it."""
    start = tokenizer.encode("<|im_start|>assistant\n").ids[-1]
    pieces = [token for piece in says for token in tokenizer.encode(piece).ids]
    return [start, *pieces, tokenizer.token_to_id("<|im_end|>")]


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _save_weights(path: Path, config: dict[str, Any], weights: str, chain: Sequence[int]) -> None:
    # With numpy, because `import mlx_lm` would lower the limit of open files of the whole test run.
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors = {
        name: (np.ones(shape) if len(shape) == 1 else random.normal(0, shape[1] ** -0.5, shape)).astype(
            weights
        )
        for name, shape in _shapes(config).items()
    }
    if chain:
        # Layers that add nothing leave the token's embedding, and the head turns that into the next one.
        for name in tensors:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensors[name] *= 0
        embedded = tensors["model.embed_tokens.weight"]
        head = tensors["lm_head.weight"] = np.zeros_like(embedded)
        for token, following in itertools.pairwise(chain):
            assert not head[following].any(), "a token may come only once"
            head[following] = 10 * embedded[token] / np.linalg.norm(embedded[token])
    save_file(tensors, path, metadata={"format": "mlx"})


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of a llama model by its name."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = width * config["num_key_value_heads"] // config["num_attention_heads"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (narrow, width),
        "self_attn.v_proj.weight": (narrow, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
