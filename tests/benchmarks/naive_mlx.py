"""What anybody would write with mlx-lm: load, then one call after the other. The floor of `bench_mlx.py`.

Reads {"model", "prompts", "max_tokens"} from stdin, prints {"texts", "cpu", "wall"} in seconds.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from contextlib import suppress


def main() -> None:
    asked = json.load(sys.stdin)
    with suppress(OSError):  # the same arithmetic as ours, or the comparison would be of BLAS libraries
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    from mlx_lm import generate, load

    model, tokenizer = load(asked["model"])
    prompts = [tokenizer.apply_chat_template(turns, add_generation_prompt=True) for turns in asked["prompts"]]
    generate(model, tokenizer, prompts[0][:16], max_tokens=2)
    started, wall = time.process_time(), time.perf_counter()
    texts = [generate(model, tokenizer, prompt, max_tokens=asked["max_tokens"]) for prompt in prompts]
    spent = {"cpu": time.process_time() - started, "wall": time.perf_counter() - wall}
    print(json.dumps({"texts": texts, **spent}))


main()
