"""`askfirst doctor`: what works is ok, what does not is named with the way out, and nothing is changed."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.commands.checks import ClockCheck, check_disk, check_folder, check_packages, check_port
from daemon.render import safe
from tests.support.fake_ollama import FakeOllama
from tests.support.program import Ended, Program


@pytest.fixture
def garden(tmp_path: Path) -> Program:
    return Program.with_garden(tmp_path, "leeks dry")


def states(done: Ended) -> dict[str, str]:
    return {check["name"]: check["state"] for check in done.data["checks"]}


def message(done: Ended, name: str) -> str:
    return next(f"{c['message']} {c['way_out']}" for c in done.data["checks"] if c["name"] == name)


def test_on_a_fresh_machine_everything_is_ok_and_nothing_is_made_but_the_record_of_its_question(
    garden: Program,
) -> None:
    before = sorted(path.name for path in (garden.folder / "data").iterdir())
    done = garden.call("doctor", "--json")
    assert done.code == 0, done
    assert done.data["ok"] is True
    found = {name: state for name, state in states(done).items() if not name.startswith("service")}
    assert found == dict.fromkeys(
        ("packages", "name clashes", "configuration", "agents", "prompts", "data folder", "disk", "database",
         "port", "model", "structured answers", "clock"),
        "ok",
    )  # fmt: skip
    after = sorted(path.name for path in (garden.folder / "data").iterdir())
    assert after == sorted([*before, "llm_usage.sqlite3"]), "the question may have cost something"


def test_for_people_each_check_is_a_line_and_the_last_line_is_the_verdict(garden: Program) -> None:
    assert garden.call("--once").code == 0
    done = garden.call("doctor")
    assert done.code == 0, done
    assert "ok    database: " in done.out
    assert done.out.splitlines()[-1] == "Everything works."
    assert done.out == safe(done.out)


def test_a_bad_configuration_fails_with_its_problems(garden: Program) -> None:
    done = garden.call("doctor", "--json", ASKFIRST_WEB__PORT="x")
    assert done.code == 1
    assert states(done)["configuration"] == "fail"
    assert "ASKFIRST_WEB__PORT" in message(done, "configuration")


def test_a_model_that_cannot_be_reached_fails(garden: Program) -> None:
    done = garden.call("doctor", "--json", LLM_BACKEND="ollama")
    assert done.code == 1
    assert states(done)["model"] == "fail"
    assert "LLM_BACKEND" in message(done, "model")
    assert "structured answers" not in states(done)
    assert "1 of 11 checks failed." in garden.call("doctor", LLM_BACKEND="ollama").out


def test_rules_alone_are_ok_and_it_says_how_to_get_a_model(garden: Program) -> None:
    done = garden.call("doctor", "--json", LLM_BACKEND="auto", LLM_MODEL="no-such-model:1b")
    assert done.code == 0, done
    assert states(done)["model"] == "ok"
    assert "rules alone" in message(done, "model")


def test_a_plugin_that_cannot_be_loaded_is_warned_about(garden: Program) -> None:
    (garden.folder / "data" / "plugins" / "broken.py").write_text("import nothing_like_it\n")
    done = garden.call("doctor", "--json")
    assert done.code == 0, done
    assert states(done)["agents"] == "warn"
    assert "nothing_like_it" in message(done, "agents")


def test_a_database_that_is_damaged_or_too_new_fails(garden: Program) -> None:
    assert garden.call("--once").code == 0
    path = garden.folder / "data" / "askfirst.sqlite3"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    done = garden.call("doctor", "--json")
    assert (done.code, states(done)["database"]) == (1, "fail")
    path.write_bytes(b"this is no database, and long enough to be read as one " * 100)
    done = garden.call("doctor", "--json")
    assert (done.code, states(done)["database"]) == (1, "fail")


def test_a_run_dated_after_now_says_that_the_clock_is_wrong(garden: Program) -> None:
    assert garden.call("--once").code == 0
    with closing(sqlite3.connect(garden.folder / "data" / "askfirst.sqlite3")) as db, db:
        db.execute("UPDATE runs SET started_at = replace(started_at, substr(started_at, 1, 4), '2090')")
        db.execute("UPDATE runs SET finished_at = replace(finished_at, substr(finished_at, 1, 4), '2090')")
    done = garden.call("doctor", "--json")
    assert (done.code, states(done)["clock"]) == (1, "fail")
    assert "the last run was at 2090" in message(done, "clock")


def test_the_clock_of_this_machine_is_sane() -> None:
    assert ClockCheck().result().state == "ok"
    assert ClockCheck().result(datetime.now(UTC) + timedelta(days=1)).state == "fail"


def test_the_packages_of_this_checkout_are_ours() -> None:
    assert check_packages().state == "ok"


def test_a_folder_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "askfirst.sqlite3").touch(mode=0o600)
    assert check_folder(tmp_path).state == "ok"
    (tmp_path / "askfirst.sqlite3").chmod(0o644)
    found = check_folder(tmp_path)
    assert (found.state, "askfirst.sqlite3" in found.message) == ("warn", True)
    assert "chmod" in found.way_out


def test_a_folder_that_cannot_be_had_fails_and_one_that_can_is_ok(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_folder(tmp_path / "file").state == "fail"
    assert check_folder(tmp_path / "deep" / "er").state == "ok"
    assert check_disk(tmp_path / "deep" / "er").state in {"ok", "warn"}


def test_a_port_that_another_program_has_fails_and_a_free_one_is_ok() -> None:
    with mute_server() as port:
        found = check_port("127.0.0.1", port, enabled=True)
        assert (found.state, f"another program has 127.0.0.1:{port}") == ("fail", found.message)
        assert check_port("127.0.0.1", port, enabled=False).state == "ok"
    assert check_port("127.0.0.1", 0, enabled=True).state == "ok"
    assert check_port("203.0.113.7", 0, enabled=True).state == "fail"


@contextmanager
def mute_server() -> Iterator[int]:
    """A server of another kind: it takes connections and closes them."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_all() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=close_all)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_port_that_our_own_daemon_has_is_ok(garden: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with garden.running("run", ASKFIRST_WEB__PORT=port, ASKFIRST_DAEMON__LOG_FORMAT="json") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "askfirst is running" in line:
                break
        done = garden.call("doctor", "--json", ASKFIRST_WEB__PORT=port)
        process.terminate()
        process.communicate(timeout=30)
    assert done.code == 0, done
    assert f"Askfirst answers at 127.0.0.1:{port}" in message(done, "port")
    assert process.returncode == 0


class Babbling(FakeOllama):
    """An Ollama whose model is there and answers with prose, whatever form is asked for."""

    def _chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return super()._chat({**body, "format": None})


async def test_a_model_that_gives_no_structured_answers_fails(garden: Program) -> None:
    async with Babbling() as ollama:
        done = await asyncio.to_thread(
            garden.run, "doctor", "--json", LLM_BACKEND="ollama", OLLAMA_HOST=ollama.url
        )
    assert done.code == 1, done
    assert (states(done)["model"], states(done)["structured answers"]) == ("ok", "fail")
    assert "rules" in message(done, "structured answers")


async def test_a_model_that_answers_as_asked_is_ok(garden: Program) -> None:
    async with FakeOllama() as ollama:
        done = await asyncio.to_thread(
            garden.run, "doctor", "--json", LLM_BACKEND="auto", OLLAMA_HOST=ollama.url
        )
    assert (states(done)["model"], states(done)["structured answers"]) == ("ok", "ok"), done
    assert "Ollama answers" in message(done, "model")


async def test_each_of_several_backends_is_looked_at_and_one_that_answers_is_enough(garden: Program) -> None:
    file = garden.folder / "config" / "askfirst.toml"
    before = await asyncio.to_thread(file.read_text)
    async with FakeOllama() as ollama:
        backends = (
            f'[llm.backends.near]\nbackend = "ollama"\napi_base = "{ollama.url}"\n'
            '[llm.backends.far]\nbackend = "ollama"\napi_base = "http://127.0.0.1:1"\nretries = 0\n'
        )
        await asyncio.to_thread(file.write_text, f"{before}\n{backends}")
        done = await asyncio.to_thread(garden.run, "doctor", "--json", LLM_BACKEND="")
    assert done.code == 0, done
    found = {name: state for name, state in states(done).items() if "backend" in name or "model" in name}
    assert found == {"backend near": "ok", "backend far": "warn", "model": "ok"}
    assert "askfirst config explain llm.backends.far" in message(done, "backend far")
    assert "near (ollama, qwen2.5:1.5b)" in message(done, "model")
    assert states(done)["structured answers"] == "ok"
    done = await asyncio.to_thread(garden.run, "doctor", "--json", LLM_BACKEND="")
    assert (done.code, states(done)["model"], states(done)["backend near"]) == (1, "fail", "fail")
