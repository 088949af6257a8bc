"""What each refusing status becomes: the status is trusted before the text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm import errors
from llm.wire.status import Refusal, inner_status, retry_after, unwrap
from tests.support.replay_server import recording

SERVER = "http://box:1"


def error_of(status: int, payload: Any = None, headers: dict[str, str] | None = None) -> errors.LLMError:
    body = b"" if payload is None else json.dumps(payload).encode()
    return Refusal(
        server=SERVER, status=status, headers=headers or {}, body=body, secrets=["sk-secret-key"]
    ).error()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, errors.ConfigurationError),
        (308, errors.ConfigurationError),
        (400, errors.BadRequest),
        (401, errors.AuthenticationFailed),
        (402, errors.AuthenticationFailed),
        (403, errors.AuthenticationFailed),
        (404, errors.BadRequest),
        (405, errors.BadRequest),
        (408, errors.DeadlineExceeded),
        (409, errors.ServerError),
        (413, errors.BadRequest),
        (422, errors.BadRequest),
        (429, errors.RateLimited),
        (500, errors.ServerError),
        (502, errors.ServerError),
        (503, errors.ServerError),
        (504, errors.DeadlineExceeded),
        (529, errors.ServerError),
    ],
)
def test_a_status_alone_decides_the_error(status: int, expected: type[errors.LLMError]) -> None:
    error = error_of(status)
    assert type(error) is expected
    assert SERVER in str(error)
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, errors.ModelNotFound),
        (401, errors.AuthenticationFailed),
        (403, errors.AuthenticationFailed),
        (429, errors.RateLimited),
        (500, errors.ServerError),
    ],
)
def test_the_text_refines_a_bad_request_and_overrules_nothing(
    status: int, expected: type[errors.LLMError]
) -> None:
    payload = {"error": {"message": "the model does not exist", "code": "model_not_found"}}
    assert type(error_of(status, payload)) is expected


@pytest.mark.parametrize(
    "payload",
    [
        {"error": "model 'nope' not found"},
        {"error": {"message": "The model `gpt-9` does not exist", "code": "model_not_found"}},
        {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-0"}},
    ],
)
def test_a_404_about_a_model_says_how_to_choose_another(payload: Any) -> None:
    error = error_of(404, payload)
    assert type(error) is errors.ModelNotFound
    assert "LLM_MODEL" in str(error)


def test_a_404_about_a_path_points_at_the_base() -> None:
    error = Refusal(server=SERVER, status=404, body=b"404 page not found").error()
    assert type(error) is errors.BadRequest
    assert "404 page not found" in str(error)
    assert "LLM_API_BASE" in str(error)


def limited(payload: Any, headers: dict[str, str]) -> errors.RateLimited:
    error = error_of(429, payload, headers)
    assert isinstance(error, errors.RateLimited)
    return error


def test_a_rate_limit_says_how_long_to_wait_and_a_quota_that_waiting_does_not_help() -> None:
    slow = limited({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, {"retry-after": "20"})
    assert (slow.retry_after, slow.quota) == (20.0, False)
    spent = limited({"error": {"message": "you ran out", "type": "insufficient_quota"}}, {})
    assert (spent.retry_after, spent.quota) == (None, True)


def test_an_anthropic_limit_without_a_time_is_the_spend_limit() -> None:
    payload = {"type": "error", "error": {"type": "rate_limit_error", "message": "limit"}}
    assert limited(payload, {}).quota
    assert not limited(payload, {"retry-after": "3"}).quota


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 10:01:00 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 60.0),
        ({"retry-after": "Mon, 23 Nov 2026 09:00:00 GMT", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 23 Nov 2026 10:01:00", "date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 60.0),
        ({"retry-after": "Mon, 23 Nov 1970 09:00:00 GMT"}, 0.0),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_busy_server_that_names_a_time_has_it_in_the_message() -> None:
    assert "86400 s" in str(error_of(503, None, {"retry-after": "86400"}))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"error": "text"}, "text"),
        ({"error": {"message": "text", "type": "t"}}, "text"),
        ({"message": "text"}, "text"),
        ({"detail": "text"}, "text"),
        ({"error": '{"error":{"code":400,"message":"text"}}'}, "text"),
        ({"error": {"message": '{"error":{"code":400,"message":"text"}}'}}, "text"),
        ({"error": "{broken"}, "{broken"),
        ({"error": {}}, ""),
        ([], "[]"),
        ({"detail": [{"loc": ["body"], "msg": "text"}]}, '[{"loc": ["body"], "msg": "text"}]'),
    ],
)
def test_the_message_is_found_in_every_shape(payload: Any, message: str) -> None:
    assert unwrap(payload).message == message


@pytest.mark.parametrize(
    ("name", "expected", "part"),
    [
        ("chat_unknown_model_nostream", errors.ModelNotFound, "model 'nope:1b' not found"),
        ("chat_runner_killed_nostream", errors.ServerError, "unexpected EOF"),
        ("chat_queue_full_503", errors.ServerError, "server busy"),
        ("chat_format_bad_schema_stream", errors.BadRequest, "JSON schema conversion failed"),
        ("chat_prompt_over_num_ctx_truncate_false", errors.BadRequest, "request (6407 tokens) exceeds"),
        ("chat_cloud_model_cloud_disabled", errors.AuthenticationFailed, "ollama cloud is disabled"),
        ("chat_option_wrong_type", errors.ServerError, 'option "temperature" must be'),
        ("embedm_chat_on_embedding_model", errors.NotSupported, "does not support chat"),
        ("cors_foreign_get", errors.AuthenticationFailed, "answered 403;"),
        ("method_wrong", errors.BadRequest, "405 method not allowed"),
        ("v1_chat_unknown_model", errors.ModelNotFound, "model 'nope:1b' not found"),
        ("v1_chat_bad_schema", errors.BadRequest, "JSON schema conversion failed"),
        ("v1_unknown_path", errors.BadRequest, "404 page not found"),
        ("anthropic_unknown_model", errors.ModelNotFound, "model 'nope:1b' not found"),
        ("anthropic_missing_max_tokens", errors.BadRequest, "max_tokens"),
    ],
)
def test_what_ollama_was_recorded_to_refuse(name: str, expected: type[errors.LLMError], part: str) -> None:
    response = recording(name)["response"]
    body = response.get("body") or "".join(chunk["text"] for chunk in response.get("chunks", []))
    headers = {key.lower(): value for key, value in response["headers"].items()}
    error = Refusal(server=SERVER, status=response["status"], headers=headers, body=body.encode()).error()
    assert type(error) is expected
    assert part in str(error)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:sk-secret-key@evil.example:9/x?key=sk-secret-key", "evil.example:9"),
        ("//evil.example/x", "evil.example"),
        ("/login?next=sk-secret-key", "another path"),
        ("", "another path"),
    ],
)
def test_a_redirect_shows_the_host_alone_and_the_way_out(location: str, shown: str) -> None:
    text = str(error_of(302, None, {"location": location}))
    assert f"redirects to {shown} " in text
    assert "LLM_API_BASE" in text
    assert "sk-secret" not in text


def test_an_echoed_key_is_not_in_the_message() -> None:
    text = str(error_of(401, {"error": {"message": "Incorrect API key provided: sk-secret-key"}}))
    assert "sk-secret" not in text
    assert "Incorrect API key provided: [redacted]" in text


def test_a_web_page_and_rubbish_say_nothing() -> None:
    assert (
        str(Refusal(server=SERVER, status=502, body=b"<html>Bad Gateway</html>").error())
        == f"{SERVER} answered 502"
    )
    assert "\ufffd" in str(Refusal(server=SERVER, status=502, body=b"\xff\x00").error())


@pytest.mark.parametrize(
    ("status", "told", "retryable"),
    [
        (429, "false", False),
        (500, "false", False),
        (400, "true", True),
        (503, "", True),
        (400, "maybe", False),
    ],
)
def test_a_server_may_say_whether_asking_again_helps(status: int, told: str, *, retryable: bool) -> None:
    error = Refusal(server=SERVER, status=status, headers={"x-should-retry": told}).error()
    assert error.retryable is retryable
    assert type(error).retryable is (status != 400)  # of this one error, not of its kind


def test_a_server_that_failed_says_how_long_to_wait() -> None:
    error = Refusal(server=SERVER, status=529, headers={"retry-after-ms": "1500"}).error()
    assert type(error) is errors.ServerError
    assert (error.retry_after, error.retryable) == (1.5, True)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, "invalid_request_error", "You have reached your specified API usage limits."),
        (400, "invalid_request_error", "Your credit balance is too low to access the API."),
        (429, "rate_limit_error", "This request would exceed your organization's monthly spend limit."),
        (429, "insufficient_quota", "You exceeded your current quota."),
    ],
)
def test_a_used_up_account_is_told_from_a_busy_server_and_never_retried(
    status: int, kind: str, message: str
) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    headers = {"retry-after": "5", "x-should-retry": "true"}
    error = Refusal(server=SERVER, status=status, headers=headers, body=body).error()
    assert isinstance(error, errors.RateLimited)
    assert error.quota
    assert not error.retryable


@pytest.mark.parametrize("what", ["chat", "tools", "thinking", "embeddings"])
def test_what_a_model_cannot_do_is_not_supported(what: str) -> None:
    body = json.dumps({"error": f'"m:1b" does not support {what}'}).encode()
    assert type(Refusal(server=SERVER, status=400, body=body).error()) is errors.NotSupported
    assert type(Refusal(server=SERVER, status=501).error()) is errors.NotSupported


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("engine died", 500),
        ({"code": 429}, 429),
        ({"code": 7, "type": "overloaded_error"}, 529),
        ({"code": True}, 500),
        ({"type": "rate_limit_error"}, 429),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": [], "type": {}}, 500),
    ],
)
def test_an_error_inside_a_200_has_the_status_that_it_names(error: object, status: int) -> None:
    assert inner_status({"error": error}) == status
