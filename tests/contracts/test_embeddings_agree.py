"""The same texts are the same vectors, whichever engine makes them: MiniLM on all four that make any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import LLMConfig, get_llm_client
from tests.support.engines import requires_llamacpp, requires_minilm, requires_mlx
from tests.support.gguf_files import minilm_folder, minilm_gguf
from tests.support.real_engines import Engines

pytestmark = [
    pytest.mark.contract,
    pytest.mark.engine,
    requires_llamacpp,
    requires_minilm,
    requires_mlx,
]

TEXTS = (
    "The freezer in the garage is getting warm.",
    "10 kg tomatoes, ripe, to be fetched before Friday",
    "Äpfel und Birnen, naïve café 123",
    "una bicicleta para niños",
)
ALIKE = 0.999
NAME = "all-minilm"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("engines"))
    yield made
    made.close()


async def vectors(backend: str, **values: object) -> tuple[tuple[float, ...], ...]:
    config = LLMConfig.from_mapping(
        {"backend": backend, "timeout": 120.0, "enable_cache": False, "retries": 0, **values}
    )
    async with get_llm_client(config) as client:
        return (await client.embed(TEXTS)).vectors


def cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_four_engines_make_the_same_vectors_of_length_one(engines: Engines, tmp_path: Path) -> None:
    folder, weights = minilm_folder(), minilm_gguf(tmp_path / "minilm.gguf")
    address = engines.ollama_address()
    engines.ollama.create(NAME, weights)
    made = {
        "llamacpp": await vectors("llamacpp", embed_model=str(weights)),
        "mlx": await vectors("mlx", embed_model=str(folder), cache_dir=str(tmp_path / "cache")),
        "ollama": await vectors("ollama", api_base=address, embed_model=NAME),
        "openai": await vectors("remote", api_base=f"{address}/v1", embed_model=NAME, model=NAME),
    }
    first = made["llamacpp"]
    assert {len(vector) for each in made.values() for vector in each} == {384}
    for name, found in made.items():
        for place, vector in enumerate(found):
            assert cosine(vector, vector) == pytest.approx(1.0, abs=1e-4)
            assert cosine(vector, first[place]) >= ALIKE, (name, TEXTS[place])
    assert cosine(first[0], first[1]) < 0.9, "different texts are different vectors"
