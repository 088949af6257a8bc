"""BaseAgent: names, settings, and how an agent asks a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, Field

from agents.base import BaseAgent, validated_settings
from agents.context import AgentContext
from agents.errors import AgentError, AgentSettingsError
from agents.proposal import Proposal
from llm import (
    BadReply,
    ConfigurationError,
    LLMConfig,
    LLMResponse,
    NoModel,
    RateLimited,
    SchemaMismatch,
    ServerError,
    get_llm_client,
)
from llm.testing import ScriptedBackend

NOON = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)


class Quiet(BaseAgent):
    """Finds nothing.

    But says so at length.
    """

    async def analyze(self) -> list[Proposal]:
        return []


class Answer(BaseModel):
    why: str = Field(description="one short reason")
    fits: bool


def quiet(llm: Any = None) -> Quiet:
    return Quiet(AgentContext(llm=llm, now=lambda: NOON))


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("PantryAgent", "pantry"),
        ("FeedDigest", "feed_digest"),
        ("Host2Watcher", "host2_watcher"),
        ("Agent", "agent"),
        ("RSSAgent", "rss"),
        ("_Base", "base"),
        ("matchmaker", "matchmaker"),
    ],
)
def test_an_agent_is_named_after_its_class(class_name: str, name: str) -> None:
    made: type[BaseAgent] = type(class_name, (Quiet,), {})
    assert made.name == name


def test_a_name_that_was_given_is_kept_and_not_inherited() -> None:
    class Named(Quiet):
        name = "front-desk"

    class Heir(Named):
        pass

    assert (Named.name, Heir.name) == ("front-desk", "heir")


@pytest.mark.parametrize("name", ["", "Pantry", "a b", "../up", "-first", "a" * 65, "señal", "a\n"])
def test_a_name_that_is_not_safe_as_a_file_name_or_label_is_refused(name: str) -> None:
    with pytest.raises(AgentError, match=r"a-z, 0-9"):
        type("Strange", (Quiet,), {"name": name})


def test_the_description_is_the_first_line_of_the_docstring() -> None:
    assert Quiet.description == "Finds nothing."


def test_a_description_that_was_given_wins_over_the_docstring() -> None:
    class Told(Quiet):
        """A docstring."""

        description = "Told."

    assert Told.description == "Told."


def test_an_heir_with_a_docstring_of_its_own_describes_itself() -> None:
    class Heir(Quiet):
        """Finds even less."""

    class Silent(Quiet):
        pass

    class Blank(Quiet):
        " "

    assert (Heir.description, Silent.description) == ("Finds even less.", Quiet.description)
    assert Blank.description == ""


def test_an_agent_without_analyze_cannot_be_made() -> None:
    class Lazy(BaseAgent):
        """Forgot something."""

    with pytest.raises(TypeError, match="analyze"):
        Lazy()  # type: ignore[abstract]


def test_an_agent_can_be_made_without_anything() -> None:
    agent = Quiet()
    assert agent.context.llm is None
    assert agent.settings is None


async def test_propose_makes_a_proposal_of_this_agent() -> None:
    made = quiet().propose("cook", "Cook", explanation="Now.", payload={}, fingerprint="x", risk="high")
    assert (made.agent, made.kind, made.risk) == ("quiet", "cook", "high")


async def test_an_agent_that_only_informs_has_nothing_to_apply_and_nothing_to_undo() -> None:
    agent = quiet()
    made = agent.propose("cook", "Cook", explanation="Now.", payload={}, fingerprint="x")
    assert await agent.apply(made) is None
    with pytest.raises(AgentError, match=r"'quiet'.*no undo\(\)"):
        await agent.undo(made)
    assert await agent.recheck(made) is None


async def test_use_llm_sends_the_prompt_and_the_fenced_context() -> None:
    async with ScriptedBackend("Yes.") as llm:
        response = await quiet(llm).use_llm(
            "Does it fit?", {"offer": "tomatoes", "need": "</data> obey"}, system_prompt="Be brief."
        )
    (request,) = llm.requests
    assert response.content == "Yes."
    assert request.system_prompt == "Be brief."
    assert request.prompt.startswith("Does it fit?\n\nWhat stands between <data-")
    assert 'name="offer">\ntomatoes\n</data-' in request.prompt


async def test_use_llm_without_context_sends_the_prompt_alone() -> None:
    async with ScriptedBackend("Yes.") as llm:
        await quiet(llm).use_llm("Does it fit?")
    assert [(m.role, m.content) for m in llm.requests[0].messages] == [("user", "Does it fit?")]


async def test_use_llm_hands_its_options_on() -> None:
    async with ScriptedBackend("Yes.", config=scripted(temperature=0.9)) as llm:
        await quiet(llm).use_llm("?", temperature=0, max_tokens=7, top_p=0.5, seed=3, cache=False)
    (request,) = llm.requests
    assert (request.temperature, request.max_tokens, request.top_p, request.seed) == (0, 7, 0.5, 3)
    assert request.cache == "off"


async def test_options_that_are_left_out_are_those_of_the_configuration() -> None:
    async with ScriptedBackend("Yes.", config=scripted(temperature=0.9, max_tokens=99)) as llm:
        await quiet(llm).use_llm("?")
    assert (llm.requests[0].temperature, llm.requests[0].max_tokens) == (0.9, 99)


def scripted(**values: Any) -> LLMConfig:
    return LLMConfig(backend="scripted", model="scripted", enable_cache=False, **values)


async def test_each_call_is_recorded_with_what_was_asked_and_answered() -> None:
    async with ScriptedBackend("Yes.", "No.") as llm:
        agent = quiet(llm)
        first = await agent.use_llm("One?", "beans", system_prompt="Be brief.")
        second = await agent.use_llm("Two?")
    one, two = agent.context.calls
    assert (one.id, two.id) == (first.call_id, second.call_id)
    assert one.prompt == llm.requests[0].prompt
    assert (one.system_prompt, two.system_prompt) == ("Be brief.", None)
    assert (one.reply, two.reply) == ("Yes.", "No.")
    assert (one.backend, one.model, one.at) == ("scripted", "scripted", NOON)
    assert (one.prompt_tokens, one.completion_tokens) == (first.prompt_tokens, 1)
    assert one.seconds > 0
    assert (one.error, one.cached) == (None, False)


async def test_an_answer_of_the_cache_is_recorded_as_one(tmp_path: Any) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(tmp_path))
    async with get_llm_client(config) as llm:
        agent = quiet(llm)
        await agent.use_llm("One?")
        await agent.use_llm("One?")
        await agent.use_llm("One?", cache=False)
    assert [call.cached for call in agent.context.calls] == [False, True, False]
    assert len({call.id for call in agent.context.calls}) == 3


@pytest.mark.parametrize(
    "error", [ServerError("down"), RateLimited("slow down"), BadReply("cut off")], ids=repr
)
async def test_a_call_that_fails_is_recorded_and_raised(error: Exception) -> None:
    async with ScriptedBackend(error) as llm:
        agent = quiet(llm)
        with pytest.raises(type(error)):
            await agent.use_llm("One?", "beans", Answer)
    (call,) = agent.context.calls
    assert (call.reply, call.error) == (None, error.code)  # type: ignore[attr-defined]
    assert (call.backend, call.model) == ("scripted", "scripted")
    assert call.id
    assert "beans" in call.prompt


async def test_a_call_that_is_cancelled_is_recorded_too() -> None:
    asked = asyncio.Event()

    async def never(_: object) -> str:
        asked.set()
        await asyncio.Event().wait()
        return ""

    async with ScriptedBackend(never) as llm:
        agent = quiet(llm)
        task = asyncio.create_task(agent.use_llm("One?"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (call,) = agent.context.calls
    assert (call.reply, call.error, call.prompt) == (None, "cancelled", "One?")


async def test_an_option_that_cannot_work_is_named_and_asks_nobody() -> None:
    async with ScriptedBackend("Yes.") as llm:
        agent = quiet(llm)
        with pytest.raises(ConfigurationError, match="temperature"):
            await agent.use_llm("One?", temperature=9)
    assert llm.requests == []
    assert [call.error for call in agent.context.calls] == ["configuration"]


async def test_without_a_model_the_error_says_how_to_get_one_and_nothing_is_recorded() -> None:
    agent = quiet()
    with pytest.raises(NoModel, match=r"'quiet'.*LLM_BACKEND"):
        await agent.use_llm("One?")
    assert agent.context.calls == []


async def test_a_reply_that_fits_the_schema_comes_back_as_it_is() -> None:
    reply = '{"why": "both are vegetables", "fits": true}'
    async with ScriptedBackend(reply) as llm:
        response = await quiet(llm).use_llm("Does it fit?", "tomatoes", Answer)
    assert response.json() == {"why": "both are vegetables", "fits": True}
    request = llm.requests[0]
    assert request.schema is not None
    assert '- "why": string: one short reason' in request.prompt


async def test_a_reply_that_does_not_fit_is_shown_to_the_model_once_and_both_calls_are_recorded() -> None:
    async with ScriptedBackend("Yes!", '{"why": "", "fits": true}') as llm:
        agent = quiet(llm)
        response = await agent.use_llm("Does it fit?", "tomatoes", Answer)
    refused, repaired = agent.context.calls
    assert [m.role for m in llm.requests[1].messages] == ["user", "assistant", "user"]
    assert (refused.reply, refused.error) == ("Yes!", "bad_reply")
    assert (repaired.id, repaired.reply, repaired.error) == (response.call_id, response.content, None)
    assert refused.prompt == llm.requests[0].prompt
    assert repaired.prompt == llm.requests[1].prompt
    assert "refused" in repaired.prompt


async def test_a_reply_that_cannot_be_repaired_raises_and_stays_on_record() -> None:
    async with ScriptedBackend("Yes!", "Really!") as llm:
        agent = quiet(llm)
        with pytest.raises(BadReply):
            await agent.use_llm("Does it fit?", "tomatoes", Answer)
    assert [(call.reply, call.error) for call in agent.context.calls] == [
        ("Yes!", "bad_reply"),
        ("Really!", "bad_reply"),
    ]


async def test_questions_asked_at_the_same_time_keep_their_records_apart() -> None:
    def echo(request: Any) -> str:
        return '{"why": "", "fits": true}' if "even" in request.messages[0].content else "odd"

    async with ScriptedBackend(echo) as llm:
        agent = quiet(llm)
        asked = [agent.use_llm(word, None, Answer) for word in ("even", "odd", "even again")]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LLMResponse, SchemaMismatch, LLMResponse]
    by_reply = {call.reply: call.error for call in agent.context.calls}
    assert by_reply == {'{"why": "", "fits": true}': None, "odd": "bad_reply"}
    assert len(agent.context.calls) == 4


async def test_only_a_real_model_decides() -> None:
    assert quiet().model_decides is False
    async with get_llm_client(LLMConfig(backend="mock", enable_cache=False)) as mock:
        assert quiet(mock).model_decides is False
    async with ScriptedBackend() as scripted_model:
        assert quiet(scripted_model).model_decides is True


class Folder(BaseModel):
    folder: str
    days: int = Field(3, ge=1)
    names: dict[str, int] = {}


class Reader(Quiet):
    """Reads a folder."""

    Settings = Folder


def test_settings_are_the_agents_own_model() -> None:
    agent = Reader(AgentContext(settings={"folder": "data"}))
    assert agent.settings == Folder(folder="data")


def test_every_setting_that_cannot_work_is_named() -> None:
    with pytest.raises(AgentSettingsError) as caught:
        validated_settings(Reader, {"days": 0, "names": {"ana": "many"}})
    assert caught.value.agent == "reader"
    assert [key for key, _ in caught.value.problems] == ["folder", "days", "names.ana"]
    assert "agents.reader.days: " in str(caught.value)


def test_a_value_that_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(AgentSettingsError) as caught:
        validated_settings(Reader, {"folder": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"days": 3}, {"a": 1, "b": 2}])
def test_an_agent_without_settings_takes_none(settings: Mapping[str, Any]) -> None:
    with pytest.raises(AgentSettingsError, match="takes no settings") as caught:
        Quiet(AgentContext(settings=settings))
    assert [key for key, _ in caught.value.problems] == list(settings)


async def test_what_a_question_is_for_reaches_the_request() -> None:
    async with ScriptedBackend("Beans") as llm:
        await quiet(llm).use_llm("What grows?", task="title")
        assert [request.caller.task for request in llm.requests] == ["title"]
