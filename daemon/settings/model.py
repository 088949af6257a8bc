"""Settings: what the program is told, as frozen values that are checked where they enter."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from agents.base import NAME_PATTERN
from agents.config import BACKOFF, AgentConfig
from agents.durations import FORMS, parse_duration
from agents.errors import InvalidProposal
from agents.proposal import DEFAULT_EXPIRY, Approvers
from agents.schedule import parse_quiet, parse_zone
from daemon.errors import SettingsError, SettingsProblem
from daemon.parts import checked_levels, parse_levels
from daemon.settings.places import default_data_dir
from daemon.settings.sources import Sources
from daemon.settings.toml_lines import KeyPath
from llm.budgets import Budget, parse_budgets
from llm.config import AUTO, ENVIRONMENT, LLMConfig
from llm.errors import ConfigurationError

if TYPE_CHECKING:
    from agents.base import BaseAgent

API_KEY_FILE_VARIABLE = "LLM_API_KEY_FILE"
CREDENTIAL = "llm_api_key"
"""Name of systemd's credential that holds the key: `LoadCredential=llm_api_key:/etc/askfirst/llm_api_key`."""


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        msg = f"must be {FORMS}"
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns only ValueError into a problem
    return parse_duration(value)


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        msg = "must be longer than 0"
        raise ValueError(msg)
    return value


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _prices_as_text(value: Any) -> Any:
    """The table [llm.prices] as `LLM_PRICES` has it; what is no such table is left for the check of that."""
    if not isinstance(value, Mapping):
        return value
    prices: list[str] = []
    for model, table in value.items():
        kept = dict(table) if isinstance(table, Mapping) else {}
        amounts = [kept.pop(key, None) for key in ("input", "output", "cached")]
        given = amounts if amounts[2] is not None else amounts[:2]
        if kept or not all(isinstance(a, int | float) and not isinstance(a, bool) for a in given):
            msg = f'must be "{model}" = {{ input = 2.5, output = 10, cached = 1.25 }}, USD per million tokens'
            raise ValueError(msg)
        prices.append(f"{model}={'/'.join(f'{Decimal(str(a)):f}' for a in given)}")
    return ", ".join(prices)


def _levels(value: Any) -> Any:
    """Parts and their levels; a table in them, which is what TOML makes of a.b = "c", has parts below."""
    if isinstance(value, str):  # as the environment has it
        return parse_levels(value)
    return _flat(value)


def _flat(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for part, level in value.items():
        inner = _flat(level)
        if isinstance(inner, Mapping):
            found |= {f"{part}.{name}": each for name, each in inner.items()}
        else:
            found[str(part)] = level
    return found


Whole = Annotated[int, Strict()]
Text = Annotated[str, Strict()]
Switch = Annotated[bool, Strict()]
Number = Annotated[float, Strict()]
Folder = Annotated[Path, AfterValidator(_absolute)]
Levels = Annotated[Mapping[str, Text], BeforeValidator(_levels), AfterValidator(checked_levels)]
Prices = Annotated[
    str,
    BeforeValidator(_prices_as_text),
    Strict(),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {name: {"type": "number"} for name in ("input", "output", "cached")},
                "required": ["input", "output"],
                "additionalProperties": False,
            },
        }
    ),
]
Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    AfterValidator(_positive),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["90s", "15m", "1h30m", "2d"]}),
]


class Section(BaseModel):
    """One table of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class BudgetSettings(Section):
    """What single agents may spend; `llm.budget` is for all of them together."""

    agents: Mapping[str, Text] = Field(
        default_factory=dict,
        description='by agent, what it may spend: `agents.matchmaker = "20000 tokens/day"`; unset: no limit',
    )

    @field_validator("agents")
    @classmethod
    def _can_be_read(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            try:
                _of_agent(name, text)
            except ConfigurationError as error:
                message = str(error).removeprefix("LLM_BUDGET (budget) ")
                raise ValueError(f"{name}: {message}") from error
        return value

    def as_texts(self) -> list[str]:
        """Each of them as `LLM_BUDGET` has it."""
        return [str(budget) for name, text in self.agents.items() for budget in _of_agent(name, text)]


def _of_agent(name: str, text: str) -> list[Budget]:
    found = parse_budgets(text)
    if not NAME_PATTERN.fullmatch(name) or any(budget.scope != "total" for budget in found):
        msg = 'must be an agent\'s name and what that one may spend, such as matchmaker = "20000 tokens/day"'
        raise ConfigurationError(msg)
    return [replace(budget, scope="agent", name=name) for budget in found]


def _checked_address(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not value.get_secret_value().startswith(("http://", "https://")):
        msg = "must begin with http:// or https://"
        raise ValueError(msg)
    return value


class ModelSettings(Section):
    """Which model to use and how it shall answer; what is left out keeps the default of `LLMConfig`."""

    backend: Text = Field(
        AUTO,
        description='"auto" takes the first that works: Ollama, mlx, the embedded llamacpp, else rules only. '
        'Or one of "ollama", "llamacpp", "mlx", "remote", "mock"',
    )
    model: Text = Field("", description="the backend's name of the model; empty: the backend's usual one")
    api_base: Text | None = Field(
        None, description="base URL of the server; unset: the backend's usual place"
    )
    api_key: SecretStr | None = Field(
        None, description="key of a remote service; better kept in `api_key_file` or in `LLM_API_KEY`"
    )
    api_key_file: Folder | None = Field(
        None,
        description="file whose content is the key; systemd's credential `llm_api_key` is found by itself",
    )
    temperature: Number | None = Field(None, description="0 is greedy, up to 2; unset: 0.7")
    max_tokens: Whole | None = Field(None, description="most tokens of one answer; unset: 512")
    top_p: Number | None = Field(None, description="nucleus threshold, above 0 and at most 1; unset: 0.9")
    timeout: Number | None = Field(None, description="total seconds of one call; unset: 30")
    seed: Whole | None = Field(None, description="seed of the sampler; unset: the backend's choice")
    context_length: Whole | None = Field(
        None, description="tokens of context to ask a local engine for; unset: 4096"
    )
    max_reply_bytes: Whole | None = Field(
        None, description="a larger reply is cut off and refused; unset: 4194304"
    )
    enable_cache: Switch | None = Field(None, description="keep and reuse answers; unset: true")
    cache_dir: Folder | None = Field(
        None, description="folder of the response cache; unset: `llm_cache` in `daemon.data_dir`"
    )

    think: Switch | Literal["low", "medium", "high"] | None = Field(
        None,
        description="whether, and how hard, a model that can think does so before it answers; unset: false",
    )
    overflow: Literal["refuse", "trim"] | None = Field(
        None,
        description='a prompt longer than the context: "refuse" it or "trim" its oldest turns; '
        'unset: "refuse"',
    )
    keep_alive: Text | None = Field(
        None,
        description='how long Ollama keeps the model loaded: seconds or "10m", "-1" for ever; '
        "unset: the server's choice",
    )
    embed_model: Text | None = Field(
        None, description="the model that turns texts into vectors; unset: `llm.model`"
    )
    adapter_path: Folder | None = Field(None, description="folder of a LoRA adapter for mlx; unset: none")
    model_dir: Folder | None = Field(
        None, description="folder of downloaded models; unset: `models` in `daemon.data_dir`"
    )
    idle_seconds: Number | None = Field(
        None, description="an embedded engine without a call for so long gives its memory back; unset: 300"
    )
    api_version: Text | None = Field(
        None, description="Anthropic's API version; unset: the one that takes most parameters"
    )
    cache_mode: Literal["on", "read", "write", "off"] | None = Field(
        None, description='"read" keeps nothing new, "write" asks anew and keeps the answer; unset: "on"'
    )
    cache_max_age: Number | None = Field(
        None, description="seconds; an older kept answer does not count; unset: any age"
    )
    cache_max_bytes: Whole | None = Field(
        None, description="most bytes of the response cache; unset: 67108864"
    )
    retries: Whole | None = Field(None, description="how often a failed call is made again; unset: 2")
    max_concurrency: Whole | None = Field(
        None, description="calls under way at a time; unset: what suits the backend"
    )
    requests_per_minute: Whole | None = Field(None, description="most calls in a minute; unset: no limit")
    tokens_per_minute: Whole | None = Field(None, description="most tokens in a minute; unset: no limit")
    budget: Text | None = Field(
        None, description='what may be spent, such as "100000 tokens/day, 2 usd/month"; unset: no limit'
    )
    prices: Prices | None = Field(
        None,
        description='by model, USD per million tokens: `"gpt-4o" = { input = 2.5, output = 10 }`; '
        "unset: list prices, 0 on hardware of one's own",
    )
    usage_file: Folder | None = Field(
        None, description="ledger of all model calls; unset: `llm_usage.sqlite3` in `daemon.data_dir`"
    )

    @field_validator("*")
    @classmethod
    def _as_the_client_wants_it(cls, value: Any, info: ValidationInfo) -> Any:
        """Checked by `LLMConfig`'s own rules, so that both say the same."""
        name = str(info.field_name)
        if value is None or name not in ENVIRONMENT or isinstance(value, SecretStr | Path):
            return value
        try:
            LLMConfig(**{"backend": "mock", name: value})
        except ConfigurationError as error:
            raise ValueError(str(error).removeprefix(f"{ENVIRONMENT[name]} ({name}) ")) from error
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            msg = "api_key and api_key_file are both set; keep one, better api_key_file"
            raise ValueError(msg)
        return self


class BackendSettings(ModelSettings):
    """One of several backends, [llm.backends.NAME]; what is left out is as [llm] says."""

    backend: Text = Field(
        "", description='"ollama", "llamacpp", "mlx", "remote" or "mock"; unset: what `llm.backend` says'
    )
    escalate: Text | None = Field(
        None,
        description="name of the larger backend that is asked as well when this one is unsure or does not "
        "keep to the form; unset: none",
    )


class RouteSettings(Section):
    """Which of the named backends are asked for what, in their order until one answers."""

    default: tuple[Text, ...] = Field(
        (), description="every call without a route of its own; unset: all backends, in their order"
    )
    agents: Mapping[str, tuple[Text, ...]] = Field(
        default_factory=dict, description="the calls of an agent, by its name"
    )
    tasks: Mapping[str, tuple[Text, ...]] = Field(
        default_factory=dict, description="the calls for a task, by its name; wins over the agent's route"
    )


class LLMSettings(ModelSettings):
    """Which model to use, or which models, and how they shall answer."""

    budgets: BudgetSettings = Field(
        default_factory=BudgetSettings, description="what single agents may spend"
    )
    backends: Mapping[str, BackendSettings] = Field(
        default_factory=dict, description="several backends by name, each with the keys of [llm]"
    )
    routes: RouteSettings = Field(
        default_factory=RouteSettings, description="which of the named backends are asked for what"
    )


class DaemonSettings(Section):
    """The process itself."""

    data_dir: Folder = Field(
        default_factory=default_data_dir,
        description="folder of the database and of what agents remember; "
        "unset: systemd's state folder, else the user's own",
    )
    plugin_dir: Folder = Field(
        default_factory=lambda values: values["data_dir"] / "plugins",
        description="folder of the user's own agents, one file each; unset: `plugins` in `data_dir`",
    )
    prompts_dir: Folder | None = Field(
        None,
        description="folder of your own versions of the agents' prompt templates; "
        "unset: `prompts` beside the configuration file",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least serious kind of line that is logged"
    )
    log_levels: Levels = Field(
        default_factory=dict,
        description='levels of single parts, such as `{ llm = "debug", "agents.matchmaker" = "debug" }`; '
        "unset: `daemon.log_level` for all",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description='"console" for people, "json" for the journal; "auto" asks whether it is a terminal',
    )
    stop_grace: Duration = Field(
        timedelta(seconds=1), description="how long runs under way may go on when the program is stopped"
    )
    max_concurrent_runs: Whole = Field(2, ge=1, le=64, description="how many agents may run at once")
    max_runs_per_backend: Whole | None = Field(
        None,
        ge=1,
        le=64,
        description="how many agents that ask the same backend may run at once; unset: no limit of its own",
    )
    timezone: Text | None = Field(
        None,
        description='time zone of schedules, such as "Europe/Berlin"; an agent may have its own; '
        "unset: that of this machine",
    )
    quiet: tuple[Text, ...] = Field(
        (),
        description='when no agent is run on schedule, such as "22:00-07:00" or "sat,sun 00:00-24:00"; '
        "an agent may have its own",
    )
    backoff: tuple[Duration, ...] = Field(
        BACKOFF,
        description="how long an agent is left alone after one failure, two in a row, and so on",
    )
    quarantine_after: Whole = Field(
        10,
        ge=1,
        description="after so many failures of its own in a row an agent is not run on schedule any more",
    )
    min_free_bytes: Whole = Field(
        50 * 1024 * 1024,
        ge=0,
        description="with less room than this on the disk of `data_dir` no agent is run; decisions are taken",
    )
    ping_url: SecretStr | None = Field(
        None,
        description="address that is told at each `ping_every` that the program works, as Healthchecks "
        "(healthchecks.io) understands it; unset: nobody is told",
    )
    ping_every: Duration = Field(timedelta(minutes=5), description="how often `ping_url` is told")
    stall_after: Duration = Field(
        timedelta(seconds=1),
        description="an agent that keeps the whole program from its work for so long is named in the log",
    )
    control_group: Text | None = Field(
        None,
        min_length=1,
        description="group of users whose commands the running daemon takes, each under their login name; "
        "unset: only its own user's and root's",
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            parse_zone(value)
        return value

    @field_validator("quiet")
    @classmethod
    def _readable_windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            parse_quiet(each)
        return value

    @field_validator("ping_url")
    @classmethod
    def _an_address(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_address(value)


class BackupSettings(Section):
    """Copies of the database that the program makes by itself."""

    every: Duration = Field(
        timedelta(days=7), description="how often a copy is made, if anything has changed since the last one"
    )
    keep: Whole = Field(4, ge=0, le=1000, description="how many copies are kept; 0 makes none")
    dir: Folder | None = Field(
        None, description="folder of the copies; unset: `backups` in `daemon.data_dir`"
    )


class RetentionSettings(Section):
    """How long what has ended is kept. What people turned down is kept for ever, so that it stays so."""

    runs: Duration = Field(timedelta(days=365), description="runs, and what became of each due time")
    calls: Duration = Field(
        timedelta(days=90), description="what models were asked in a run, and their answers"
    )
    proposals: Duration = Field(
        timedelta(days=730),
        description="proposals that wait for nothing any more; they cannot be undone after that",
    )


class WebSettings(Section):
    """The endpoints `/metrics`, `/healthz` and `/readyz`."""

    enabled: Switch = Field(default=True, description="whether to listen at all")
    host: Text = Field(
        "127.0.0.1", min_length=1, description="address to listen on; only this machine by default"
    )
    port: Whole = Field(8484, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    allowed_hosts: tuple[Text, ...] = Field(
        (), description="names that a request may ask for, besides those of this machine"
    )


class MetricsSettings(Section):
    """What `/metrics` shows, and where `askfirst --once` leaves it."""

    max_series: Whole = Field(
        200,
        ge=120,
        le=100_000,
        description="how many series `/metrics` has at most; agents and models beyond that are `other` there",
    )
    pushgateway: SecretStr | None = Field(
        None,
        description="address of a Pushgateway that `askfirst --once` leaves its metrics with when no daemon "
        "runs; unset: none",
    )

    @field_validator("pushgateway")
    @classmethod
    def _an_address(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_address(value)


class TraceSettings(Section):
    """Traces over OTLP, for a collector, Jaeger or Tempo; needs `pip install 'askfirst[otel]'`."""

    endpoint: Text | None = Field(
        None,
        min_length=1,
        description="base address of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; "
        "unset: what OTEL_EXPORTER_OTLP_ENDPOINT says, else no traces",
    )
    headers: SecretStr | None = Field(
        None,
        description="sent with each request: `name=value`, several with commas between them; "
        "better kept in `headers_file`",
    )
    headers_file: Folder | None = Field(None, description="file whose content is what `headers` would be")
    content: Switch = Field(
        default=False,
        description="whether prompts, answers, tools' arguments and errors' texts are sent too; "
        "they may be private",
    )
    sample: Number = Field(
        1.0, ge=0, le=1, description="which share of the runs is traced, with all that belongs to them"
    )

    @field_validator("endpoint")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and not _has_host(value):
            msg = "must be http:// or https:// and a host, without a key, such as http://127.0.0.1:4318"
            raise ValueError(msg)
        return value

    @field_validator("headers")
    @classmethod
    def _can_be_read(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            headers_of(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.headers is not None and self.headers_file is not None:
            msg = "headers and headers_file are both set; keep one, better headers_file"
            raise ValueError(msg)
        return self

    def wanted(self, environ: Mapping[str, str]) -> bool:
        """Whether there are traces: somebody says where they go, and nobody says that there are none."""
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or not self.sample:
            return False
        return bool(self.endpoint or any(environ.get(name) for name in TRACE_ENDPOINT_VARIABLES))


TRACE_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables that say where traces go."""


TRACE_HEADER_VARIABLES = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


def _has_host(address: str) -> bool:
    try:
        parts = urlsplit(address)
        plain = parts.username is None and not parts.query
        return plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def headers_of(text: str) -> dict[str, str]:
    """Headers as OTEL_EXPORTER_OTLP_HEADERS has them: `name=value,other=value`, values perhaps %-encoded.

    Raises:
        ValueError: they are written in another way; the message shows none of them.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        name, sign, value = part.partition("=")
        name, value = name.strip(), unquote(value.strip())
        if not sign or not _HEADER_NAME.fullmatch(name) or not value.isprintable():
            msg = "must be name=value, several with commas between them, such as authorization=Bearer%20KEY"
            raise ValueError(msg)
        found[name.lower()] = value
    return found


class ApproverSettings(Section):
    """Who must approve a proposal."""

    mode: Literal["any", "all", "quorum"] = Field(
        "any", description='"any" one person, "all" of `people`, or a "quorum" of them'
    )
    people: tuple[Text, ...] = Field((), description="who may approve; empty: anybody")
    quorum: Whole = Field(1, ge=1, description='how many must approve when `mode` is "quorum"')

    @model_validator(mode="after")
    def _can_be_satisfied(self) -> Self:
        try:
            self.as_approvers()
        except InvalidProposal as error:
            raise ValueError(str(error).removeprefix("approvers: ")) from error
        return self

    def as_approvers(self) -> Approvers:
        """The same as the proposals' own value."""
        return Approvers(mode=self.mode, people=self.people, quorum=self.quorum)


class ProposalSettings(Section):
    """What holds for every agent's proposals unless its own table says otherwise."""

    expires_after: Duration = Field(
        DEFAULT_EXPIRY, description="how long a proposal waits for a decision; expiry never approves"
    )
    approvers: ApproverSettings = Field(default_factory=ApproverSettings, description="who must approve")


class Settings(BaseModel):
    """Everything the program is told, merged from defaults, file and environment.

    Attributes:
        llm: the table [llm].
        daemon: the table [daemon].
        backup: the table [backup].
        retention: the table [retention].
        web: the table [web].
        metrics: the table [metrics].
        traces: the table [traces].
        proposals: the table [proposals].
        agents: the tables [agents.NAME], as they were written.
        config_file: the file that was read, None when there is none.
        base_dir: where relative paths of agents start: the file's folder.
        warnings: what works but should be looked at.
        sources: where each value came from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    llm: LLMSettings = Field(default_factory=LLMSettings)
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    backup: BackupSettings = Field(default_factory=BackupSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    traces: TraceSettings = Field(default_factory=TraceSettings)
    proposals: ProposalSettings = Field(default_factory=ProposalSettings)
    agents: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    config_file: Path | None = None
    base_dir: Path = Field(default_factory=Path.cwd)
    warnings: tuple[SettingsProblem, ...] = ()
    sources: Sources = Field(default_factory=Sources, repr=False)

    def agent_config(self, name: str, agent_cls: type[BaseAgent] | None = None) -> AgentConfig:
        """How the agent `name` is run: its own table over what [proposals] says for all.

        Raises:
            AgentSettingsError: its table cannot work; every problem is named.
        """
        shared: dict[str, Any] = {
            "expires_after": self.proposals.expires_after,
            "approvers": self.proposals.approvers.as_approvers(),
            "quiet": self.daemon.quiet,
            "backoff": self.daemon.backoff,
            "quarantine_after": self.daemon.quarantine_after,
        }
        if self.daemon.timezone is not None:
            shared["schedule_timezone"] = self.daemon.timezone
        return AgentConfig.from_table(name, {**shared, **self.agents.get(name, {})}, agent_cls)

    @property
    def prompts_dir(self) -> Path:
        """The folder of the owner's own prompt templates, whether it exists or not."""
        return self.daemon.prompts_dir or self.base_dir / "prompts"

    @property
    def backup_dir(self) -> Path:
        """The folder of the backups, whether it exists or not."""
        return self.backup.dir or self.daemon.data_dir / "backups"

    @property
    def enabled_agents(self) -> tuple[str, ...]:
        """The agents that have a table without `enabled = false`, in the order of the file."""
        return tuple(name for name, table in self.agents.items() if table.get("enabled", True) is not False)

    def trace_headers(self) -> dict[str, str]:
        """The headers of the collector's requests, those of `traces.headers_file` included.

        Raises:
            SettingsError: that file cannot be read, or holds no headers.
        """
        table = self.traces
        if table.headers_file is None:
            return headers_of(table.headers.get_secret_value()) if table.headers is not None else {}
        path: KeyPath = ("traces", "headers_file")
        try:
            return headers_of(read_key(table.headers_file, path, self.sources))
        except ValueError as error:
            raise SettingsError([self.sources.problem(path, f"what is in it {error}")]) from error

    def trace_secrets(self, environ: Mapping[str, str]) -> list[str]:
        """What nobody may learn of the collector's headers, those of OpenTelemetry's own variables included.

        Raises:
            SettingsError: as `trace_headers`.
        """
        values = list(self.trace_headers().values())
        for variable in TRACE_HEADER_VARIABLES:
            with suppress(ValueError):  # the SDK leaves out what it cannot read
                values += headers_of(environ.get(variable, "")).values()
        return [*values, *(value.rpartition(" ")[2] for value in values)]  # of "Bearer KEY" the key alone too

    def llm_environ(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """The `LLM_*` variables that these settings and the environment amount to; the environment wins.

        `LLM_BACKEND` is absent when the choice is left to the program.

        Raises:
            SettingsError: the file that holds the key cannot be read.
        """
        source = os.environ if environ is None else environ
        values = self._llm_texts()
        given = {variable: source.get(variable, "").strip() for variable in ENVIRONMENT.values()}
        values.update({variable: text for variable, text in given.items() if text})
        budgets = [*filter(None, [values.get("LLM_BUDGET")]), *self.llm.budgets.as_texts()]
        if budgets:
            values["LLM_BUDGET"] = ", ".join(budgets)
        if values.get("LLM_BACKEND", AUTO).lower() == AUTO:
            values.pop("LLM_BACKEND", None)
        if "LLM_API_KEY" not in values:
            values.update(self._key_from_file(source))
        return values

    def _llm_texts(self) -> dict[str, str]:
        data = self.daemon.data_dir
        values = {
            "LLM_CACHE_DIR": str(data / "llm_cache"),
            "LLM_MODEL_DIR": str(data / "models"),
            "LLM_USAGE_FILE": str(data / "llm_usage.sqlite3"),
        }
        values.update({ENVIRONMENT[name]: text for name, text in texts_of(self.llm).items()})
        return values

    def _key_from_file(self, environ: Mapping[str, str]) -> dict[str, str]:
        file = self.llm.api_key_file or credential_file(environ)
        key = None if file is None else read_key(file, ("llm", "api_key_file"), self.sources)
        return {"LLM_API_KEY": key} if key else {}


def texts_of(table: ModelSettings) -> dict[str, str]:
    """What a table says about a model, as texts by the name of the setting, without what it leaves out."""
    texts: dict[str, str] = {}
    for name in ENVIRONMENT:
        value = getattr(table, name)
        if isinstance(value, SecretStr):
            texts[name] = value.get_secret_value()
        elif isinstance(value, bool):
            texts[name] = "true" if value else "false"
        elif value not in (None, ""):
            texts[name] = str(value)
    return texts


def credential_file(environ: Mapping[str, str]) -> Path | None:
    """The key that systemd hands over, None if it does not."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    file = Path(folder) / CREDENTIAL
    return file if folder and file.is_file() else None


def read_key(file: Path, path: KeyPath, sources: Sources) -> str:
    """The key in a file.

    Raises:
        SettingsError: it cannot be read; names the setting at `path`.
    """
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError([sources.problem(path, f"{file} cannot be read: {reason}")]) from error
