"""HookTokens: the secret of each agent's webhook, in a file that only the program's user can read."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from daemon.store.files import private_subfolder, write_private

FOLDER = "hooks"
"""Name of the folder of tokens in the data folder."""

_TOKEN_BYTES = 32
_LONGEST = 512
_NOBODY = hashlib.sha256(secrets.token_bytes(_TOKEN_BYTES)).digest()


class HookTokens:
    """Reads and makes tokens; none is kept in memory, so that a renewed one counts at once.

    Args:
        data_dir: the data folder.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def fits(self, agent: str, token: str) -> bool:
        """Whether `token` is that of `agent`. Takes as long for an agent that has none, or does not exist."""
        digests = {name: _digest(text) for name, text in self._all().items()}
        return hmac.compare_digest(digests.get(agent, _NOBODY), _digest(token))

    def get(self, agent: str) -> str | None:
        """The agent's token, None when none was made."""
        return self._all().get(agent)

    def path(self, agent: str) -> Path:
        """Where the agent's token is kept."""
        return self._data_dir / FOLDER / agent

    def make(self, agent: str) -> str:
        """Make a token for `agent`, in place of the one that it had.

        Raises:
            StoreError: it cannot be written.
        """
        folder = private_subfolder(self._data_dir, FOLDER)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        draft = folder / f".{agent}.new"  # no agent's name begins with a dot
        write_private(self.path(agent), f"{token}\n", draft=draft)
        return token

    def _all(self) -> dict[str, str]:
        """Every token by its agent; the same work whichever agent is asked about."""
        found: dict[str, str] = {}
        try:
            files = [each for each in (self._data_dir / FOLDER).iterdir() if not each.name.startswith(".")]
        except OSError:  # no token was made yet
            return found
        for file in files:
            try:
                with file.open("rb") as opened:
                    text = opened.read(_LONGEST).decode("utf-8", "replace").strip()
            except OSError:
                continue
            if text:
                found[file.name] = text
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
