"""What a GGUF file says about itself, and files that say it wrongly."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.backends.gguf import NotGGUF, read_header
from llm.backends.models import model_file
from tests.support.engines import requires_llamacpp
from tests.support.gguf_files import gguf_bytes

METADATA = {
    "general.architecture": "qwen2",
    "qwen2.context_length": 32768,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["a", "bé", "🍅"],
    "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.chat_template": "{% if tools %}{{ tools }}{% endif %}<think>",
}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


class TestReading:
    def test_scalars_and_texts_are_read_and_arrays_passed_over(self, tmp_path: Path) -> None:
        header = read_header(written(tmp_path, gguf_bytes(METADATA)))
        assert header.values["tokenizer.ggml.add_bos_token"] is False
        assert header.values["qwen2.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
        assert "tokenizer.ggml.tokens" not in header.values
        assert header.values["tokenizer.chat_template"] == METADATA["tokenizer.chat_template"]

    def test_it_tells_context_tools_and_thinking(self, tmp_path: Path) -> None:
        header = read_header(written(tmp_path, gguf_bytes(METADATA)))
        assert (header.context_length, header.takes_tools, header.thinks) == (32768, True, True)
        assert header.embeds is False

    @pytest.mark.parametrize("says", [{"bert.pooling_type": 1}, {"bert.attention.causal": False}])
    def test_an_encoder_embeds(self, tmp_path: Path, says: dict[str, object]) -> None:
        header = read_header(written(tmp_path, gguf_bytes({"general.architecture": "bert", **says})))
        assert header.embeds is True
        assert header.context_length == 0

    @requires_llamacpp
    def test_a_real_model_is_read(self) -> None:
        header = read_header(model_file("smollm2:135m"))
        assert header.values["general.basename"] == "smollm2"
        assert (header.context_length, header.takes_tools, header.embeds) == (8192, False, False)


class TestDamagedFiles:
    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04" + bytes(100), b"GGUF" + struct.pack("<IQQ", 1, 0, 0)]
    )
    def test_another_format_is_refused(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(NotGGUF):
            read_header(written(tmp_path, content))

    def test_a_file_cut_at_any_byte_of_its_header_is_refused(self, tmp_path: Path) -> None:
        whole = gguf_bytes(METADATA).rstrip(b"\0")
        for end in range(len(whole)):
            with pytest.raises(NotGGUF):
                read_header(written(tmp_path, whole[:end]))

    def test_a_count_beyond_reason_is_refused_at_once(self, tmp_path: Path) -> None:
        pairs = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(64)
        items = b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 2, 0, 9, 11, 2**63 - 1) + bytes(64)
        nested = b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 9) + struct.pack("<IQ", 9, 1) * 5000
        for content in (pairs, items, nested):
            with pytest.raises(NotGGUF):
                read_header(written(tmp_path, content))

    @given(flips=st.lists(st.tuples(st.integers(4, 250), st.integers(0, 255)), max_size=4))
    def test_flipped_bytes_are_read_or_refused_and_never_anything_else(
        self, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
    ) -> None:
        content = bytearray(gguf_bytes(METADATA))
        for at, value in flips:
            content[at] = value
        with suppress(NotGGUF):
            read_header(written(tmp_path_factory.mktemp("flipped"), bytes(content)))
