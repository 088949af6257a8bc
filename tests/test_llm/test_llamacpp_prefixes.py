"""The beginnings of prompts that the embedded engine keeps on disk: which, how many, and that they serve."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm import LLMConfig, LLMMessage, LLMRequest
from llm.backends import prefixes
from llm.backends.llamacpp import LlamaCppBackend
from llm.backends.prefixes import PrefixFiles, PrefixKeeper
from llm.errors import BadRequest, LLMError
from tests.support.engines import becomes_true, requires_llamacpp

SYSTEM = " ".join(f"Rule {n}: agents report what they saw, briefly and without guessing." for n in range(30))
HEAD = " ".join(f"Fact {n}: the garden has a shed, two beds and a well." for n in range(30))
RULES = SYSTEM[:720]  # long enough to be kept, short enough for a busy machine
aside = asyncio.to_thread


def request(user: str = "What now?", system: str = SYSTEM, **options: Any) -> LLMRequest:
    turns = (LLMMessage("system", system), LLMMessage("user", user))
    return LLMRequest(
        messages=turns, model="m", temperature=0.0, max_tokens=4, top_p=None, **{"cache": "on", **options}
    )


@dataclass
class PretendSlot:
    """An engine that renders "<s>system</s><u>user</u>" and writes what it was given to its state file."""

    folder: Path
    pid: int | None = 1
    asleep: bool = False
    refuses: str = ""
    asked: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    read: str = ""

    async def sleeps(self) -> bool:
        return self.asleep

    async def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        self.asked.append(path)
        match path:
            case "/apply-template":
                system, user = (message["content"] for message in body["messages"])
                return {"prompt": f"<s>{system.strip()}</s><u>{user}</u>"}
            case _:
                self.read = body["prompt"]
                return {}

    async def state(self, action: str, file: str) -> None:
        self.asked.append(action)
        if self.refuses == action:
            msg = "refused"
            raise BadRequest(msg)
        if action == "save":
            await aside((self.folder / file).write_text, self.read)
        else:
            self.restored.append(await aside((self.folder / file).read_text))


@pytest.fixture
def files(tmp_path: Path) -> PrefixFiles:
    return PrefixFiles(tmp_path / "states", "model 1")


@pytest.fixture
def slot(files: PrefixFiles) -> PretendSlot:
    return PretendSlot(files.folder)


def saved(files: PrefixFiles) -> list[str]:
    return sorted(path.read_text() for path in files.folder.glob("*.kv"))


class TestWhatIsKept:
    async def test_a_system_prompt_is_read_and_saved_before_its_first_answer(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request())
        assert await aside(saved, files) == [f"<s>{SYSTEM}"]
        assert slot.asked == ["/apply-template", "/completion", "save"]

    async def test_nothing_of_what_follows_it_is_in_the_state(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request("my secret question"))
        assert "secret" not in "".join(await aside(saved, files))

    async def test_it_is_saved_once_and_warm_calls_ask_nothing(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        keeper = PrefixKeeper(300)
        for number in range(3):
            await keeper.prepare(files, slot, request(f"{number}?"))
            keeper.finished()
        assert len(slot.asked) == 3

    async def test_a_short_system_prompt_is_not_worth_it(self, files: PrefixFiles, slot: PretendSlot) -> None:
        await PrefixKeeper(300).prepare(files, slot, request(system="Be brief."))
        assert slot.asked == []

    async def test_what_two_prompts_share_beyond_it_is_a_templates_head(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        keeper = PrefixKeeper(300)
        for name in ("Anna", "Bert", "Carl"):
            await keeper.prepare(files, slot, request(f"{HEAD} Now: {name}"))
        assert await aside(saved, files) == [f"<s>{SYSTEM}", f"<s>{SYSTEM}</s><u>{HEAD} Now:"]

    async def test_a_conversation_that_goes_on_teaches_nothing(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        keeper = PrefixKeeper(300)
        for _ in range(3):
            await keeper.prepare(files, slot, request(f"{HEAD} Now: Anna"))
        assert await aside(saved, files) == [f"<s>{SYSTEM}"]

    @pytest.mark.parametrize("mode", ["off", "read"])
    async def test_a_call_that_keeps_nothing_leaves_nothing(
        self, files: PrefixFiles, slot: PretendSlot, mode: str
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request(cache=mode))
        assert await aside(saved, files) == []

    async def test_a_template_that_changes_the_words_is_left_alone(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        keeper = PrefixKeeper(300)
        odd = request(system=SYSTEM)
        slot.ask = _shouting(slot)  # type: ignore[method-assign]  # a model whose template shouts
        await keeper.prepare(files, slot, odd)
        await keeper.prepare(files, slot, odd)
        assert slot.asked == ["/apply-template"]

    async def test_an_engine_that_refuses_costs_the_call_nothing(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        slot.refuses = "save"
        await PrefixKeeper(300).prepare(files, slot, request())
        assert await aside(saved, files) == []


def _shouting(slot: PretendSlot) -> Any:
    async def ask(path: str, body: Mapping[str, Any]) -> Any:
        slot.asked.append(path)
        return {"prompt": body["messages"][0]["content"].upper()}

    return ask


class TestWhenItIsRestored:
    async def test_a_new_process_gets_it_before_its_first_prompt(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request())
        again = PretendSlot(files.folder, pid=2)
        await PrefixKeeper(300).prepare(files, again, request("another question"))
        assert again.restored == [f"<s>{SYSTEM}"]
        assert again.asked == ["restore"]

    async def test_the_longest_one_that_fits_is_taken(self, files: PrefixFiles, slot: PretendSlot) -> None:
        keeper = PrefixKeeper(300)
        for name in ("Anna", "Bert"):
            await keeper.prepare(files, slot, request(f"{HEAD} Now: {name}"))
        again = PretendSlot(files.folder, pid=2)
        await PrefixKeeper(300).prepare(files, again, request(f"{HEAD} Now: Dora"))
        assert again.restored == [f"<s>{SYSTEM}</s><u>{HEAD} Now:"]

    async def test_an_engine_that_slept_gets_it_again_and_one_that_did_not_is_not_asked_twice(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        keeper = PrefixKeeper(1.0)  # idle at once, as far as the keeper knows
        await keeper.prepare(files, slot, request())
        keeper.finished()
        await keeper.prepare(files, slot, request("b"))
        assert slot.restored == []
        slot.asleep = True
        await keeper.prepare(files, slot, request("c"))
        assert slot.restored == [f"<s>{SYSTEM}"]

    async def test_another_prompt_model_context_or_set_of_tools_does_not_get_it(
        self, files: PrefixFiles, slot: PretendSlot, tmp_path: Path
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request())
        again = PretendSlot(files.folder, pid=2)
        await PrefixKeeper(300).prepare(files, again, request(system=SYSTEM.replace("Rule 0", "Rule X")))
        other = await aside(PrefixFiles, files.folder, "model 2")
        await PrefixKeeper(300).prepare(other, again, request(cache="read"))
        assert again.restored == []

    async def test_a_damaged_file_is_never_handed_to_the_engine_and_made_again(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request())
        (path,) = await aside(lambda: list(files.folder.glob("*.kv")))
        await aside(os.truncate, path, 10)
        again = PretendSlot(files.folder, pid=2)
        await PrefixKeeper(300).prepare(files, again, request())
        assert again.restored == []
        assert await aside(saved, files) == [f"<s>{SYSTEM}"]

    async def test_a_file_that_the_engine_refuses_is_deleted(
        self, files: PrefixFiles, slot: PretendSlot
    ) -> None:
        await PrefixKeeper(300).prepare(files, slot, request())
        again = PretendSlot(files.folder, pid=2, refuses="restore")
        await PrefixKeeper(300).prepare(files, again, request())
        assert await aside(saved, files) == []


class TestTheFiles:
    def test_they_are_private(self, files: PrefixFiles) -> None:
        _keep(files, "a" * 700)
        (path,) = files.folder.glob("*.kv")
        assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        files.folder.chmod(0o755)
        PrefixFiles(files.folder, "model 1")
        assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700

    def test_only_so_many_stay_and_the_unused_go_first(self, files: PrefixFiles) -> None:
        for number in range(prefixes.MOST_FILES):
            _keep(files, f"{number}" * 700)
        used = files.find("0" * 700)
        assert used is not None
        os.utime(used.path, (1, 1))
        files.used(used)
        _keep(files, "x" * 700)
        assert len(list(files.folder.glob("*.kv"))) == prefixes.MOST_FILES
        assert files.find("0" * 700) is not None
        assert files.find("1" * 700) is None

    def test_only_so_many_bytes_stay(self, files: PrefixFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefixes, "MOST_BYTES", 1500)
        for number in range(4):
            _keep(files, f"{number}" * 700, content=f"{number}" * 600)
        assert [files.find(f"{number}" * 700) is None for number in range(4)] == [True, True, False, False]


def _keep(files: PrefixFiles, text: str, content: str = "state") -> None:
    (files.folder / files.part_name).write_text(content)
    files.keep(text)
    newest = files.find(text)
    assert newest is not None
    stamp = time.time_ns()  # a coarse clock gives two files one time
    os.utime(newest.path, ns=(stamp, stamp))


def config(tmp_path: Path, **changes: Any) -> LLMConfig:
    values = {"backend": "llamacpp", "temperature": 0.0, "max_tokens": 4, "timeout": 120.0}
    return LLMConfig.from_mapping({**values, "cache_dir": str(tmp_path / "cache"), **changes})


@pytest.mark.engine
@requires_llamacpp
class TestWithTheEngine:
    async def test_a_new_engine_has_the_system_prompt_read_already(self, tmp_path: Path) -> None:
        texts = []
        for question in ("What is rule 1?", "What is rule 2?"):
            async with LlamaCppBackend(config(tmp_path)) as backend:
                texts.append(await backend.generate(question, RULES, cache=True))
        assert texts[0].cached_tokens == 0
        assert texts[1].cached_tokens > 100
        assert texts[1].prompt_tokens - texts[1].cached_tokens < 40
        (path,) = await aside(lambda: list((tmp_path / "cache" / "llamacpp").iterdir()))
        assert stat.S_IMODE((await aside(path.stat)).st_mode) == 0o600

    async def test_the_answer_is_the_same_as_when_it_was_read(self, tmp_path: Path) -> None:
        answers = []
        for _ in range(2):
            async with LlamaCppBackend(config(tmp_path)) as backend:
                answers.append((await backend.generate("What is rule 7?", RULES, max_tokens=24)).content)
        assert answers[0] == answers[1]

    async def test_a_sleeping_engine_gives_its_memory_back_and_wakes_with_what_it_had_read(
        self, tmp_path: Path
    ) -> None:
        async with LlamaCppBackend(config(tmp_path, idle_seconds=1.0)) as backend:
            await backend.generate("What is rule 1?", RULES)
            process = backend._host.current
            assert process is not None
            engine = psutil.Process(process.pid)
            awake = engine.memory_info().rss
            assert await aside(becomes_true, lambda: engine.memory_info().rss < 0.6 * awake)
            woken = await backend.generate("What is rule 2?", RULES)
            assert woken.cached_tokens > 100
            current = backend._host.current
            assert current is not None
            assert current.pid == engine.pid

    async def test_a_truncated_state_on_disk_does_not_kill_the_engine(self, tmp_path: Path) -> None:
        async with LlamaCppBackend(config(tmp_path)) as backend:
            await backend.generate("What is rule 1?", RULES)
        (path,) = await aside(lambda: list((tmp_path / "cache" / "llamacpp").iterdir()))
        await aside(os.truncate, path, 100_000)
        async with LlamaCppBackend(config(tmp_path)) as backend:
            assert (await backend.generate("What is rule 2?", RULES)).completion_tokens > 0

    async def test_without_a_cache_nothing_is_written(self, tmp_path: Path) -> None:
        async with LlamaCppBackend(config(tmp_path, enable_cache=False)) as backend:
            await backend.generate("What is rule 1?", RULES)
        assert not (tmp_path / "cache").exists()

    async def test_a_prompt_beyond_the_context_is_refused_as_before(self, tmp_path: Path) -> None:
        async with LlamaCppBackend(config(tmp_path, context_length=256)) as backend:
            with pytest.raises(LLMError, match="the context 256"):
                await backend.generate("What is rule 1?", RULES * 3)
