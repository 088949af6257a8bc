"""What `askfirst doctor` looks at of the installed service. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from daemon.commands.checks import Check
from daemon.install.job import installed_site
from daemon.install.launchd import plist_text
from daemon.install.machine import Machine
from daemon.install.marked import is_ours, is_untouched
from daemon.install.site import Site, installed_scope
from daemon.install.state import ServiceState, state_of
from daemon.install.systemd import drop_in_text, given_before, program_in, unit_text

SOME_RESTARTS = 3
"""From so many restarts in a row on somebody should look why."""


def service_checks(machine: Machine) -> Iterator[Check]:
    """The checks of the service, or where none is installed one line that says how."""
    scope = installed_scope(machine)
    if scope is None:
        if machine.platform == "macos" or machine.runs_systemd():
            way = "`askfirst service install` makes the program start with the machine"
            yield Check(name="service", state="ok", message="not installed", way_out=way)
        return
    site = installed_site(machine, scope)
    yield check_unit(site, machine)
    if machine.platform == "linux" and not machine.runs_systemd():
        way = "the unit is there and nobody reads it: start `askfirst run` from what starts programs here"
        yield Check(name="service runs", state="warn", message="systemd does not run here", way_out=way)
        return
    state = state_of(site, machine)
    yield check_running(site, state)
    if site.platform == "linux":
        yield check_start(site, state, machine)
        yield check_watchdog(state)
        if site.is_system:
            yield check_memory_limit(machine)
        yield check_synchronised(machine)


def check_unit(site: Site, machine: Machine) -> Check:
    """The installed unit is the one that this version would write."""
    name, text = "service", _read(machine, site.unit)
    again = f"`askfirst service install --{site.scope}` writes it anew and keeps your own drop-ins"
    if not is_ours(text):
        return Check(name=name, state="warn", message=f"{site.unit} was not written by us", way_out=again)
    if not is_untouched(text):
        way = f"put your lines into a drop-in; {again}, and the changed one beside it"
        return Check(name=name, state="warn", message=f"{site.unit} was changed by hand", way_out=way)
    started = None if site.platform == "macos" else program_in(text)
    if started is not None and started != site.program:
        message = f"{site.unit} starts {started}, and this is {site.program}"
        way = f"ask that one's doctor; or let this one be the service: {again}"
        return Check(name=name, state="warn", message=message, way_out=way)
    if text != _wanted(site) or _drop_in_differs(site, machine):
        message = f"{site.unit} is not as this version writes it"
        return Check(name=name, state="warn", message=message, way_out=again)
    return Check(name=name, state="ok", message=f"{site.unit} is as this version writes it")


def _wanted(site: Site) -> str:
    return plist_text(site) if site.platform == "macos" else unit_text(site)


def _drop_in_differs(site: Site, machine: Machine) -> bool:
    text = _read(machine, site.drop_in) if site.platform == "linux" else ""
    return bool(text) and text != drop_in_text(site, given_before(site, machine), machine)


def _read(machine: Machine, path: Path) -> str:
    try:
        return machine.place(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def check_running(site: Site, state: ServiceState) -> Check:
    """It runs, and was not started anew again and again."""
    name = "service runs"
    logs = f"see why: askfirst service logs --{site.scope} -n 50"
    if not state.known:
        way = f"askfirst service install --{site.scope}"
        return Check(
            name=name, state="fail", message=f"its manager does not know it: {state.word}", way_out=way
        )
    if state.gave_up:
        way = (
            f"`askfirst config check --config {site.config}` says what is wrong; then start the service again"
        )
        message = "it gave up, because its configuration cannot work (exit status 78)"
        return Check(name=name, state="fail", message=message, way_out=way)
    if not state.active:
        return Check(name=name, state="fail", message=state.word, way_out=logs)
    if (state.restarts or 0) >= SOME_RESTARTS:
        message = f"{state.word}, started anew {state.restarts} times"
        return Check(name=name, state="warn", message=message, way_out=logs)
    return Check(name=name, state="ok", message=f"{state.word}, started anew {state.restarts or 0} times")


def check_start(site: Site, state: ServiceState, machine: Machine) -> Check:
    """It starts with the machine, also when nobody logs in."""
    name = "service starts"
    if not state.enabled:
        control = "systemctl enable askfirst" if site.is_system else "systemctl --user enable askfirst"
        return Check(name=name, state="warn", message="not with the machine", way_out=control)
    if not site.is_system and not machine.place(f"/var/lib/systemd/linger/{site.user}").exists():
        way = f"sudo loginctl enable-linger {site.user}"
        message = f"only while {site.user} is logged in"
        return Check(name=name, state="warn", message=message, way_out=way)
    return Check(name=name, state="ok", message="with the machine")


def check_watchdog(state: ServiceState) -> Check:
    """A program that stands still is noticed."""
    name = "service watchdog"
    if state.watchdog_s is None:
        way = "a drop-in switches it off: WatchdogSec=0; without it a program that stands still stays so"
        return Check(name=name, state="warn", message="off", way_out=way)
    return Check(name=name, state="ok", message=f"after {state.watchdog_s:g} s of silence it is started anew")


def check_memory_limit(machine: Machine) -> Check:
    """The kernel obeys MemoryMax, which Raspberry Pi OS switches off."""
    name, folder = "memory limit", machine.place("/sys/fs/cgroup")
    unified = _read(machine, Path("/sys/fs/cgroup/cgroup.controllers"))
    if "memory" in unified.split() or (not unified and (folder / "memory").is_dir()):
        return Check(name=name, state="ok", message="the kernel keeps the service to it")
    places = ("/boot/firmware/cmdline.txt", "/boot/cmdline.txt")
    file = next((path for path in places if machine.place(path).exists()), "the kernel's command line")
    way = f"add cgroup_enable=memory to {file}, on its one line, and reboot"
    message = "MemoryMax has no effect: this kernel counts no memory"
    return Check(name=name, state="warn", message=message, way_out=way)


def check_synchronised(machine: Machine) -> Check:
    """Somebody keeps the clock right."""
    name = "clock synchronised"
    if not machine.has("timedatectl"):
        return Check(name=name, state="ok", message="not known: there is no timedatectl")
    done = machine.call("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if done.code != 0:
        return Check(name=name, state="ok", message="not known: timedatectl does not answer")
    if done.out.strip() == "yes":
        return Check(name=name, state="ok", message="yes")
    way = (
        "timedatectl set-ntp true; a machine without a clock chip has a wrong time after each start till then"
    )
    return Check(name=name, state="warn", message="no", way_out=way)
