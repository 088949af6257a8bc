"""What can go wrong in a model call, as one tree; nothing of httpx, mlx or sqlite3 leaves the package.

    LLMError
    |-- ConfigurationError        the settings cannot work          (never retried)
    |   |-- NoModel               no model is configured: rules only
    |   `-- TemplateError         a prompt template is missing or cannot be filled in
    |-- ConnectionFailed          the backend cannot be reached     (retry may help)
    |   `-- BreakerOpen           it failed so often that it is left alone for a while; `retry_after`
    |-- DeadlineExceeded          the total time ran out            (retry may help)
    |-- AuthenticationFailed      the key is missing or refused     (never retried)
    |-- RateLimited               too many requests; `retry_after`  (retry later)
    |-- BudgetExceeded            a budget of ours is used up       (retry later)
    |-- BadRequest                the backend refused the request   (never retried)
    |   |-- ModelNotFound         the model is not there: pull it   (never retried)
    |   `-- NotSupported          this backend or model cannot do that
    |-- ServerError               the backend failed; `retry_after` (retry may help)
    |-- BadReply                  the reply is not what was asked   (retry may help)
    |   |-- SchemaMismatch        it does not fit the schema, also after the repair
    |   `-- ToolLoopExceeded      it kept asking for tools
    `-- CallCancelled             the client was closed meanwhile   (never retried)

`asyncio.CancelledError` is not translated: it belongs to the caller who cancelled.
"""

from __future__ import annotations

from typing import ClassVar


class LLMError(Exception):
    """Any failure of a model call. The message names the thing and the way out, and never holds a key.

    Attributes:
        code: a short stable word, safe as a metric label.
        retryable: whether the same call may succeed later without a change by a person.
        retry_after: seconds before which asking again is of no use, None when nobody said.
        call_id: names the call to a backend that failed, in logs and stores; empty if none was made.
    """

    code: ClassVar[str] = "error"
    retryable: bool = False
    retry_after: float | None = None
    call_id: str = ""


class ConfigurationError(LLMError):
    """A setting is wrong or missing; the message names the variable."""

    code = "configuration"


class NoModel(ConfigurationError):
    """No model is configured at all: the program runs on rules only."""

    code = "no_model"


class TemplateError(ConfigurationError):
    """A prompt template is missing, is no template, or a variable that it needs was not given."""

    code = "template"


class ConnectionFailed(LLMError):
    """The backend cannot be reached: refused, unknown host, broken connection, engine not installed."""

    code = "connection"
    retryable = True


class BreakerOpen(ConnectionFailed):
    """The backend failed several times in a row and is left alone until `retry_after` seconds have passed."""

    code = "breaker_open"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(LLMError):
    """The total deadline of the call (`LLM_TIMEOUT`, in seconds) ran out."""

    code = "timeout"
    retryable = True


class AuthenticationFailed(LLMError):
    """The key is missing, wrong or not allowed to use this model (HTTP 401, 402 and 403)."""

    code = "authentication"


class RateLimited(LLMError):
    """Too many requests, or a quota is used up.

    Attributes:
        retry_after: seconds that the server asked to wait, None if it did not say.
        quota: True when the account's quota or spend limit is reached, which waiting does not cure.
    """

    code = "rate_limit"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, quota: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.quota = quota
        self.retryable = not quota


class BudgetExceeded(LLMError):
    """A budget that the owner set is used up, or has no room for this call.

    Attributes:
        retry_after: seconds until it begins anew.
        budget: the budget, as it is written in the configuration.
        used: what of it is spent, in its unit.
    """

    code = "budget"
    retryable = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, budget: str = "", used: float = 0.0
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.budget = budget
        self.used = used


class BadRequest(LLMError):
    """The backend understood the request and refuses it; the same request will be refused again."""

    code = "bad_request"


class ModelNotFound(BadRequest):
    """The model is not on that backend; the message says how to get it."""

    code = "model_not_found"


class NotSupported(BadRequest):
    """The backend or the model has no such ability: streams of tools, embeddings, images."""

    code = "not_supported"


class ServerError(LLMError):
    """The backend failed on its side (HTTP 5xx, a crashed runner or engine process).

    Attributes:
        retry_after: seconds that the server asked to wait, None if it did not say.
    """

    code = "server"
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadReply(LLMError):
    """The reply is truncated, too large, not JSON, of the wrong shape, or does not fit the schema.

    Attributes:
        broken: whether it broke off on its way, which has nothing to do with what was asked.
    """

    code = "bad_reply"
    retryable = True

    def __init__(self, message: str = "", *, broken: bool = False) -> None:
        super().__init__(message)
        self.broken = broken


class SchemaMismatch(BadReply):
    """The reply does not fit the schema, also after the model was shown its mistake."""

    code = "schema"


class ToolLoopExceeded(BadReply):
    """The model kept asking for tools until the step limit."""

    code = "tool_loop"


class CallCancelled(LLMError):
    """The client was closed while the call was under way."""

    code = "cancelled"


ERROR_CODES: tuple[str, ...] = (
    "error",
    *(
        cls.code
        for cls in (
            ConfigurationError,
            NoModel,
            TemplateError,
            ConnectionFailed,
            BreakerOpen,
            DeadlineExceeded,
            AuthenticationFailed,
            RateLimited,
            BudgetExceeded,
            BadRequest,
            ModelNotFound,
            NotSupported,
            ServerError,
            BadReply,
            SchemaMismatch,
            ToolLoopExceeded,
            CallCancelled,
        )
    ),
)
"""Every `code` there is: the closed set that metrics may use as label values."""
