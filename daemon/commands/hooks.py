"""`askfirst agents hook`: the secret address at which an agent can be asked to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation

if TYPE_CHECKING:
    from daemon.settings import Settings
    from daemon.triggers.tokens import HookTokens


@click.command(
    "hook", epilog=examples("askfirst agents hook matchmaker", "askfirst agents hook matchmaker --renew")
)
@click.argument("agent", metavar="NAME")
@click.option("--renew", is_flag=True, help="Make a new token; the old one is refused from then on.")
@command_options
@pass_invocation
def hook(call: Invocation, agent: str, renew: bool) -> None:
    """Show how other programs make an agent run: address, token, and a line to copy.

    The agent's table needs `webhook = true`. The token is made at the first time, and counts at once.
    """
    from daemon.triggers.tokens import HookTokens  # noqa: PLC0415 - loads the store's files

    settings = call.settings()
    _check(settings, agent)
    tokens = HookTokens(settings.daemon.data_dir)
    token = None if renew else tokens.get(agent)
    made = token is None
    if token is None:
        token = _make(settings, tokens, agent)
    url = f"{_address(settings)}/hooks/{agent}"
    curl = f"curl -X POST -H 'Authorization: Bearer {token}' {url}"
    screen = call.screen()
    if screen.as_json:
        file = str(tokens.path(agent))
        screen.data({"agent": agent, "url": url, "token": token, "made": made, "file": file, "curl": curl})
        return
    screen.line(curl)
    for remark in _remarks(settings):
        screen.line(remark, "yellow")


def _make(settings: Settings, tokens: HookTokens, agent: str) -> str:
    from daemon.runtime import DATABASE  # noqa: PLC0415 - loads the agents
    from daemon.store.files import private_folder  # noqa: PLC0415 - beside what it is needed for

    private_folder(settings.daemon.data_dir, DATABASE)
    return tokens.make(agent)


def _check(settings: Settings, agent: str) -> None:
    from daemon.errors import SettingsError  # noqa: PLC0415 - beside what it is needed for

    if agent in settings.agents and settings.agent_config(agent).webhook:
        return
    if agent in settings.agents:
        problem = settings.sources.problem(("agents", agent), "it takes no webhook; add webhook = true")
    else:
        from agents.words import nearest  # noqa: PLC0415 - as above

        message = f"there is no table [agents.{agent}]; {nearest(agent, settings.agents)}"
        problem = settings.sources.problem(("agents",), message)
    raise SettingsError([problem])


def _address(settings: Settings) -> str:
    """Where the program answers this machine."""
    host = settings.web.host
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    port = settings.web.port or "PORT"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _remarks(settings: Settings) -> list[str]:
    remarks: list[str] = []
    if not settings.web.enabled:
        remarks.append("Nobody answers there: web.enabled is false.")
    elif not settings.web.port:
        remarks.append("PORT is another one at each start (web.port is 0); the log says which.")
    return remarks
