"""A reply's body as bytes, bounded: a gzip bomb never inflates beyond the cap."""

from __future__ import annotations

import zlib

from llm.errors import BadReply

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


class ReplyBody:
    """A reply's body, decompressed as it arrives and never larger than the cap.

    Args:
        encoding: the Content-Encoding. We ask for none; gzip and deflate are read all the same.
        cap: most bytes, before and after decompression.

    Raises:
        BadReply: another encoding; or, from `add` and `finish`, too large or broken.
    """

    def __init__(self, encoding: str, cap: int) -> None:
        self._cap = cap
        self._received = 0
        self._data = bytearray()
        self._inflate = None
        name = encoding.strip().lower()
        if name in {"gzip", "x-gzip", "deflate"}:
            self._inflate = zlib.decompressobj(wbits=_ZLIB_OR_GZIP)
        elif name not in {"", "identity"}:
            msg = "the reply is in a Content-Encoding that was not asked for"
            raise BadReply(msg)

    def add(self, chunk: bytes) -> None:
        """Take the next bytes from the network."""
        self._received += len(chunk)
        room = self._cap + 1 - len(self._data)
        self._data += chunk[:room] if self._inflate is None else self._inflated(chunk, room)
        # Received bytes count too: what follows the end of a gzip stream is kept by zlib.
        if max(len(self._data), self._received) > self._cap:
            msg = f"the reply is larger than {self._cap} bytes (LLM_MAX_REPLY_BYTES)"
            raise BadReply(msg)

    def _inflated(self, chunk: bytes, room: int) -> bytes:
        assert self._inflate is not None  # noqa: S101 - for the type checker; `add` looked
        try:
            return self._inflate.decompress(chunk, room)
        except zlib.error:
            pass
        msg = "the reply's compression is broken"
        raise BadReply(msg)

    def finish(self) -> bytes:
        """The whole body, once the last bytes are in."""
        if self._inflate is not None and not self._inflate.eof:
            msg = "the reply's compressed body ends too early"
            raise BadReply(msg)
        return self.so_far()

    def so_far(self) -> bytes:
        """What has come of the body until now."""
        return bytes(self._data)
