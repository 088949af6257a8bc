"""The service under systemd: its unit, its drop-in, and the steps that install and remove it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from daemon.errors import DaemonError
from daemon.install.grants import Grants, given, quoted
from daemon.install.machine import Machine
from daemon.install.marked import marked
from daemon.install.plan import Call, File, Folder, Plan, Removal, Step, group_of, user_exists
from daemon.install.site import SERVICE, STATE_DIR, USER, Site
from daemon.install.templates import template

SYSUSERS = Path("/etc/sysusers.d/askfirst.conf")

_DEVICE_GROUPS: Mapping[str, str] = {
    r"/dev/tty(USB|ACM|AMA|S)\d+|/dev/serial\d*": "dialout",
    r"/dev/video\d+|/dev/dri/card\d+": "video",
    r"/dev/dri/renderD\d+": "render",
    r"/dev/snd/.*": "audio",
    r"/dev/i2c-\d+": "i2c",
    r"/dev/spidev[\d.]+": "spi",
    r"/dev/gpio(chip)?.*": "gpio",
}
"""The groups that Debian and Raspberry Pi OS give devices to."""


def unit_text(site: Site) -> str:
    """The unit of this site."""
    text = template("askfirst.service" if site.is_system else "askfirst-user.service")
    words = (str(site.program), "run", "--config", str(site.config))
    text = _with(text, "ExecStart", " ".join(map(exec_word, words)))
    if site.is_system:
        text = _with(text, "User", site.user)
        text = _with(text, "Group", group_of(site.user))
        text = _with(text, "ExecPaths", " ".join(["/usr", "-/lib", "-/lib64", *map(_quoted, site.folders)]))
        if site.data_dir != STATE_DIR:
            data = _quoted(site.data_dir)
            text = _with(text, "NoExecPaths", f"{_value(text, 'NoExecPaths')} {data}\nReadWritePaths={data}")
    return marked(text)


def drop_in_text(site: Site, grants: Grants, machine: Machine) -> str:
    """The drop-in with what was granted."""
    text = grants.drop_in(sandboxed=site.is_system)
    groups = dict.fromkeys(filter(None, (device_group(path, machine) for path in grants.devices)))
    if groups and site.is_system:
        text += f"SupplementaryGroups={' '.join(groups)}\n"
    return marked(text)


def device_group(path: str, machine: Machine) -> str | None:
    """The group that may use a device; None when there is none but root's."""
    import grp  # noqa: PLC0415 - only for devices

    try:
        name = grp.getgrgid(machine.place(path).stat().st_gid).gr_name
    except (OSError, KeyError):
        name = next((group for form, group in _DEVICE_GROUPS.items() if re.fullmatch(form, path)), "root")
    if name == "root" or name not in {entry.gr_name for entry in grp.getgrall()}:
        return None
    return name


def install_plan(site: Site, grants: Grants, machine: Machine, *, start: bool = True) -> Plan:
    """The steps that install the service; done a second time they change nothing."""
    steps: list[Step] = []
    if site.is_system:
        steps += [*_user_steps(site, machine), *_folder_steps(site)]
    steps.append(File(path=site.unit, text=unit_text(site)))
    if grants:
        steps.append(File(path=site.drop_in, text=drop_in_text(site, grants, machine)))
    elif machine.place(site.drop_in).exists():
        steps.append(Removal(path=site.drop_in))
    steps += _activation(site, start=start)
    return Plan(steps=tuple(steps), notes=tuple(_notes(site, grants, machine)))


def _user_steps(site: Site, machine: Machine) -> list[Step]:
    if site.user != USER:
        return []
    if machine.has("systemd-sysusers") or not machine.is_this_kind:
        return [
            File(path=SYSUSERS, text=marked(template("askfirst.sysusers"))),
            Call(
                words=("systemd-sysusers", str(SYSUSERS)),
                why="makes the user askfirst",
                unneeded=_has_its_user,
            ),
        ]
    words = ("useradd", "--system", "--home-dir", str(STATE_DIR), "--shell", "/usr/sbin/nologin", USER)
    return [Call(words=words, why="makes the user askfirst", unneeded=_has_its_user)]


def _has_its_user(_machine: Machine, _changed: bool) -> bool:  # noqa: FBT001 - as a step asks it
    return user_exists(USER)


def _folder_steps(site: Site) -> list[Step]:
    owned = dict.fromkeys((STATE_DIR, site.data_dir))
    return [
        Folder(path=site.config.parent),
        *(Folder(path=path, mode=0o700, owner=site.user) for path in owned),
    ]


def _activation(site: Site, *, start: bool) -> list[Step]:
    control = systemctl(site)
    steps = [
        Call(
            words=(*control, "daemon-reload"),
            why="makes systemd read the unit",
            unneeded=lambda machine, changed: not changed and not needs_reload(site, machine),
        ),
        Call(
            words=(*control, "enable", SERVICE),
            why="starts it with the machine",
            unneeded=lambda machine, _changed: _answers(machine, site, "is-enabled", "enabled"),
        ),
    ]
    if start:
        steps.append(
            Call(
                words=(*control, "restart", SERVICE),
                why="starts it now, and waits until it is ready",
                unneeded=lambda machine, changed: (
                    not changed and _answers(machine, site, "is-active", "active")
                ),
                help=f"see why: askfirst service logs --{site.scope}",
            )
        )
    return list(steps)


def uninstall_plan(site: Site, machine: Machine) -> Plan:
    """The steps that remove what was installed; the data and the configuration stay."""
    control = systemctl(site)
    steps: list[Step] = [
        Call(
            words=(*control, "disable", "--now", SERVICE),
            why="stops it, now and with the machine",
            unneeded=lambda machine, _changed: not machine.place(site.unit).exists(),
        ),
        Removal(path=site.drop_in),
        Removal(path=site.unit),
        *([Removal(path=SYSUSERS)] if site.is_system else []),
        Call(
            words=(*control, "daemon-reload"),
            why="makes systemd forget the unit",
            unneeded=lambda _machine, changed: not changed,
        ),
    ]
    notes = [f"the configuration stays: {site.config}", f"the data stay: {site.data_dir}"]
    if site.is_system and user_exists(site.user):
        notes.append(f"the user {site.user} stays, because the data are its own")
    own = [path.name for path in own_drop_ins(site, machine)]
    if own:
        notes.append(f"your own drop-ins stay in {site.drop_in.parent}: {', '.join(own)}")
    return Plan(steps=tuple(steps), notes=tuple(notes))


def own_drop_ins(site: Site, machine: Machine) -> Iterable[Path]:
    """The user's own drop-ins of the service."""
    found = machine.place(site.drop_in.parent).glob("*.conf")
    return sorted(path for path in found if path.name != site.drop_in.name)


def given_before(site: Site, machine: Machine) -> Grants:
    """What an earlier installation granted."""
    place = machine.place(site.drop_in)
    return given(place.read_text(encoding="utf-8")) if place.is_file() else Grants()


def site_in(unit: str, site: Site) -> Site:
    """`site` with the configuration and the user that an installed unit names."""
    config = re.search(r'^ExecStart=.* --config ("(?:[^"\\]|\\.)*"|\S+)\s*$', unit, re.MULTILINE)
    user = re.search(r"^User=(\S+)$", unit, re.MULTILINE)
    data = re.search(r'^ReadWritePaths=("(?:[^"\\]|\\.)*"|\S+)$', unit, re.MULTILINE)
    return replace(
        site,
        config=Path(_unquoted(config.group(1))) if config else site.config,
        user=user.group(1) if user else site.user,
        data_dir=Path(_unquoted(data.group(1))) if data else site.data_dir,
    )


def program_in(unit: str) -> Path | None:
    """The program that an installed unit starts."""
    found = re.search(r'^ExecStart=("(?:[^"\\]|\\.)*"|\S+)', unit, re.MULTILINE)
    return Path(_unquoted(found.group(1))) if found else None


def systemctl(site: Site) -> tuple[str, ...]:
    """The words that every call of systemctl begins with."""
    return ("systemctl",) if site.is_system else ("systemctl", "--user")


def needs_reload(site: Site, machine: Machine) -> bool:
    """Whether systemd knows an older unit than the one on the disk."""
    done = machine.call(*systemctl(site), "show", SERVICE, "--property=NeedDaemonReload", "--value")
    return done.out.strip() == "yes"


def _answers(machine: Machine, site: Site, question: str, answer: str) -> bool:
    return machine.call(*systemctl(site), question, SERVICE).out.strip() == answer


def _notes(site: Site, grants: Grants, machine: Machine) -> Iterable[str]:
    if not site.is_system and not machine.place(f"/var/lib/systemd/linger/{site.user}").exists():
        yield (
            "a user's services end when the user logs out; for one that goes on, and starts with the "
            f"machine: sudo loginctl enable-linger {site.user}"
        )
    if not site.is_system and (grants.paths or grants.devices or grants.addresses or grants.network):
        yield "a user's service has the files, devices and network of its user: nothing to be allowed there"
    for path in grants.paths if site.is_system else ():
        group = group_of(site.user)
        yield f"{path} must be writable for {site.user}: chgrp -R {group} {path}; chmod -R g+rwX {path}"
    own = [path.name for path in own_drop_ins(site, machine)]
    if own:
        yield f"your own drop-ins count too: {', '.join(own)}"


def exec_word(text: str) -> str:
    """A word of a command line as systemd reads it; see systemd.service(5)."""
    if not text.isprintable():
        msg = f"{text!r} cannot stand in a unit: it holds a character that cannot be printed"
        raise DaemonError(msg)
    return quoted(text).replace("$", "$$")


def _quoted(path: Path) -> str:
    return exec_word(str(path)).replace("$$", "$")


def _unquoted(word: str) -> str:
    text = word[1:-1].replace('\\"', '"').replace("\\\\", "\\") if word.startswith('"') else word
    return text.replace("%%", "%").replace("$$", "$")


def _with(text: str, key: str, value: str) -> str:
    changed, count = re.subn(rf"^{key}=.*$", lambda _: f"{key}={value}", text, flags=re.MULTILINE)
    if count != 1:
        msg = f"the unit that Askfirst brings along has {count} lines {key}=; install Askfirst again"
        raise DaemonError(msg)
    return changed


def _value(text: str, key: str) -> str:
    found = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    return found.group(1) if found else ""
