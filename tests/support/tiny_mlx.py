"""A tiny model for mlx-lm, made on the spot from random weights: no download, 0.1 s, and a hard case.

Random weights are the best adversary of structured output: nothing but the mask makes the reply valid.
"""

from __future__ import annotations

import json
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


def make_tiny_model(folder: Path, *, template: str | None = CHATML, weights: str = "float32") -> Path:
    """Write a model that `mlx_lm.load` takes into `folder`, and return the folder.

    Args:
        folder: is made.
        template: chat template, None for a model without one.
        weights: type of the numbers, "float32" or "float16".
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
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
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _save_weights(folder / "model.safetensors", config, weights)
    return folder


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


def _save_weights(path: Path, config: dict[str, Any], weights: str) -> None:
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
