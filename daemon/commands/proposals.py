"""`askfirst proposals`: look at proposals and decide about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agents.durations import parse_duration
from agents.errors import AgentError
from agents.proposal import Proposal, ProposalStatus
from daemon.commands.base import VIA, Invocation, command_options, examples, pass_invocation, person
from daemon.commands.shapes import proposal_data, show_proposals
from daemon.commands.showing import proposal_report, show_proposal
from daemon.errors import DaemonError, DecisionRefused, ExitCode
from daemon.render import Screen, one_line

if TYPE_CHECKING:
    from daemon.proposals import ProposalDesk
    from daemon.runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])
_S = ProposalStatus
_OPEN = tuple(status for status in ProposalStatus if status.is_open)
_FAILED = frozenset({_S.APPLY_FAILED, _S.NEEDS_ATTENTION, _S.WITHDRAWN})
_SHORTEST_DIGEST = 8

Decide = Callable[["ProposalDesk", Proposal], Awaitable[Proposal]]
"""What to do with one proposal."""


@click.group(
    "proposals",
    short_help="Look at proposals and decide about them.",
    epilog=examples(
        "askfirst proposals list",
        "askfirst proposals show 1",
        'askfirst proposals approve 1 --comment "Ana picks it up"',
        "askfirst proposals undo 1",
    ),
)
@command_options
def command() -> None:
    """Look at proposals and decide about them.

    Nothing changes until somebody approves, and what was applied can be undone.
    """


@command.command(
    "list",
    epilog=examples(
        "askfirst proposals list --agent matchmaker", "askfirst proposals list --status applied --json"
    ),
)
@click.option(
    "--status",
    type=click.Choice([status.value for status in ProposalStatus]),
    multiple=True,
    help="Only those that stand there; may be repeated.",
)
@click.option("--all", "every", is_flag=True, help="Those that wait for nothing any more, too.")
@click.option("--agent", metavar="NAME", help="Only those of this agent.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@command_options
@pass_invocation
def list_proposals(
    call: Invocation, status: tuple[str, ...], every: bool, agent: str | None, limit: int
) -> None:
    """List the proposals that are open, the newest first."""
    if every and status:
        msg = "--all and --status exclude each other"
        raise click.UsageError(msg)
    wanted = None if every else (tuple(map(ProposalStatus, status)) or _OPEN)
    screen = call.screen()
    found = call.with_runtime(lambda runtime: runtime.proposals.list(status=wanted, agent=agent, limit=limit))
    if screen.as_json:
        screen.data([proposal_data(proposal) for proposal in found])
    elif found:
        show_proposals(screen, found, datetime.now(UTC))
    else:
        screen.line("Nothing waits for a decision." if wanted == _OPEN else "There are no such proposals.")


@command.command(epilog=examples("askfirst proposals show 1 --verbose"))
@click.argument("proposal_id", metavar="ID", type=int)
@click.option("--verbose", "-v", is_flag=True, help="Also what the model was asked and what it answered.")
@command_options
@pass_invocation
def show(call: Invocation, proposal_id: int, verbose: bool) -> None:
    """Show everything that is needed to decide about a proposal."""
    screen = call.screen()
    report = call.with_runtime(lambda runtime: proposal_report(runtime, proposal_id))
    if screen.as_json:
        screen.data(report.data())
    else:
        show_proposal(screen, report, verbose=verbose, now=datetime.now(UTC))


def decision_options(function: F) -> F:
    """The proposals, who decides, and why."""
    for option in (
        command_options,
        click.option("--comment", default="", help="Why, kept with the decision."),
        click.option("--by", default=person, show_default="your login name", help="Who decides."),
        click.argument("ids", metavar="ID...", type=int, nargs=-1, required=True),
    ):
        function = option(function)
    return function


@command.command(epilog=examples('askfirst proposals approve 1 2 --comment "Ana picks it up"'))
@decision_options
@click.option("--no-apply", is_flag=True, help="Only approve; `askfirst proposals apply ID` does it later.")
@click.option("--digest", default="", help="Refuse if it is no longer what `show` showed under this digest.")
@pass_invocation
def approve(
    call: Invocation, ids: tuple[int, ...], by: str, comment: str, *, no_apply: bool, digest: str
) -> int:
    """Approve proposals, and apply them once enough people have."""

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        _check_digest(proposal, digest)
        return await desk.approve(
            _number(proposal), by, VIA, comment, digest=proposal.digest, apply=not no_apply
        )

    return _decide(call, ids, decide)


@command.command(epilog=examples('askfirst proposals reject 3 --comment "too far away"'))
@decision_options
@pass_invocation
def reject(call: Invocation, ids: tuple[int, ...], by: str, comment: str) -> int:
    """Turn proposals down. They come back only when what the agent saw has changed."""

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        return await desk.reject(_number(proposal), by, VIA, comment, digest=proposal.digest)

    return _decide(call, ids, decide)


@command.command(epilog=examples('askfirst proposals edit 3 --set quantity=4 --set place="the garden gate"'))
@decision_options
@click.option(
    "--set",
    "changes",
    multiple=True,
    required=True,
    metavar="KEY=VALUE",
    help="A new value; may be repeated.",
)
@pass_invocation
def edit(call: Invocation, ids: tuple[int, ...], by: str, comment: str, changes: tuple[str, ...]) -> int:
    """Change what a waiting proposal would do. What was approved before no longer counts.

    A VALUE is JSON (7, true, ["a"]) where it reads as such and the old value is no text; else it is a text.
    """
    pairs = [_pair(change) for change in changes]

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        values = {key: _typed(text, proposal.payload.get(key)) for key, text in pairs}
        return await desk.edit(_number(proposal), values, by, VIA, comment, digest=proposal.digest)

    return _decide(call, ids, decide)


@command.command(epilog=examples("askfirst proposals snooze 3 --for 12h"))
@decision_options
@click.option("--for", "span", required=True, metavar="TIME", help="How long, such as 2d or 90m.")
@pass_invocation
def snooze(call: Invocation, ids: tuple[int, ...], by: str, comment: str, span: str) -> int:
    """Put waiting proposals aside for a while."""
    until = datetime.now(UTC) + _duration(span)

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        return await desk.snooze(_number(proposal), until, by, VIA, comment)

    return _decide(call, ids, decide)


@command.command(epilog=examples("askfirst proposals apply 3"))
@decision_options
@pass_invocation
def apply(call: Invocation, ids: tuple[int, ...], by: str, comment: str) -> int:
    """Do what approved proposals say, or try again where that failed."""

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        return await desk.apply(_number(proposal), by, VIA, comment)

    return _decide(call, ids, decide, wanted=_S.APPLIED)


@command.command(epilog=examples('askfirst proposals undo 1 --comment "called off"'))
@decision_options
@pass_invocation
def undo(call: Invocation, ids: tuple[int, ...], by: str, comment: str) -> int:
    """Take back what was applied."""

    async def decide(desk: ProposalDesk, proposal: Proposal) -> Proposal:
        return await desk.undo(_number(proposal), by, VIA, comment)

    return _decide(call, ids, decide, wanted=_S.UNDONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one decision.

    Attributes:
        id: the proposal's number.
        proposal: the proposal as it stands now, None when the decision could not be taken.
        error: why it did not come to what was wanted, None when it did.
    """

    id: int
    proposal: Proposal | None
    error: str | None

    def data(self) -> dict[str, Any]:
        """The outcome for `--json`."""
        proposal = None if self.proposal is None else proposal_data(self.proposal)
        return {"id": self.id, "ok": self.error is None, "error": self.error, "proposal": proposal}


def _decide(
    call: Invocation, ids: Sequence[int], decide: Decide, wanted: ProposalStatus | None = None
) -> int:
    """Decide about each proposal; one that cannot be decided does not stop the others."""
    screen = call.screen()

    async def each(runtime: Runtime) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for number in dict.fromkeys(ids):
            outcomes.append(await _outcome(runtime, number, decide, wanted))
            if not screen.as_json:
                _tell(outcomes[-1])
        return outcomes

    outcomes = call.with_runtime(each)
    if screen.as_json:
        screen.data([outcome.data() for outcome in outcomes])
    return ExitCode.OK if all(outcome.error is None for outcome in outcomes) else ExitCode.FAILED


async def _outcome(runtime: Runtime, number: int, decide: Decide, wanted: ProposalStatus | None) -> Outcome:
    try:
        proposal = await decide(runtime.desk, await runtime.proposals.get(number))
    except (DaemonError, AgentError) as refusal:
        return Outcome(id=number, proposal=None, error=str(refusal))
    fell_short = proposal.status in _FAILED or wanted not in {None, proposal.status}
    error = (proposal.error or f"it is {proposal.status.value} now") if fell_short else None
    return Outcome(id=number, proposal=proposal, error=error)


def _tell(outcome: Outcome) -> None:
    """What was done goes to standard output, what could not be done to standard error."""
    proposal = outcome.proposal
    if proposal is None:
        Screen(stream=sys.stderr).line(outcome.error, "red")
        return
    line = f"{outcome.id} {proposal.status.value.replace('_', ' ')}: {one_line(proposal.title)}"
    if outcome.error is not None:
        Screen(stream=sys.stderr).line(f"{line}: {outcome.error}", "red")
    else:
        Screen().line(f"{line}{_next_step(proposal)}", "green")


def _next_step(proposal: Proposal) -> str:
    if proposal.status is _S.APPLIED and proposal.undo_data is not None:
        return f"  (to take it back: askfirst proposals undo {proposal.id})"
    if proposal.status is _S.APPROVED:
        return f"  (to do it: askfirst proposals apply {proposal.id})"
    if proposal.status is _S.PENDING and proposal.approved_by:
        return "  (more approvals are needed)"
    return ""


def _check_digest(proposal: Proposal, digest: str) -> None:
    if not digest:
        return
    if len(digest) < _SHORTEST_DIGEST:
        msg = f"a digest needs {_SHORTEST_DIGEST} characters or more; `askfirst proposals show` has it"
        raise click.UsageError(msg)
    if not proposal.digest.startswith(digest.lower()):
        msg = f"proposal {proposal.id} is no longer what that digest stands for; look again, then decide"
        raise DecisionRefused(msg)


def _number(proposal: Proposal) -> int:
    if proposal.id is None:
        msg = "the store gave a proposal without a number"
        raise DaemonError(msg)
    return proposal.id


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        msg = f"--set {text}: write it as KEY=VALUE"
        raise click.UsageError(msg)
    return key.strip(), value


def _typed(text: str, before: Any) -> Any:
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        msg = f"--for: {error}"
        raise click.UsageError(msg) from error
