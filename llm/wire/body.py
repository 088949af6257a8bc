"""A reply's body as bytes, bounded: a gzip bomb never inflates beyond the cap."""

from __future__ import annotations

import zlib

from llm.errors import BadReply

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


class BodyBytes:
    """The bytes of a body, decompressed piece by piece, none of them kept.

    Args:
        encoding: the Content-Encoding. We ask for none; gzip and deflate are read all the same.
        cap: most bytes, before and after decompression.

    Raises:
        BadReply: another encoding; or, from `take` and `end`, too large or broken.
    """

    def __init__(self, encoding: str, cap: int) -> None:
        self._cap = cap
        self._received = 0
        self._given = 0
        self._inflate = None
        name = encoding.strip().lower()
        if name in {"gzip", "x-gzip", "deflate"}:
            self._inflate = zlib.decompressobj(wbits=_ZLIB_OR_GZIP)
        elif name not in {"", "identity"}:
            msg = "the reply is in a Content-Encoding that was not asked for"
            raise BadReply(msg)

    def take(self, chunk: bytes) -> bytes:
        """What the next bytes from the network mean."""
        self._received += len(chunk)
        if self._inflate is not None:
            chunk = self._inflated(chunk)
            self._given += len(chunk)
        # Received bytes count too: after the end of a gzip stream there may come others without an end.
        if self._received > self._cap or self._given > self._cap:
            msg = f"the reply is larger than {self._cap} bytes (LLM_MAX_REPLY_BYTES)"
            raise BadReply(msg)
        return chunk

    def _inflated(self, chunk: bytes) -> bytes:
        assert self._inflate is not None  # noqa: S101 - for the type checker; `take` looked
        if self._inflate.eof:
            return b""  # what follows is no part of the reply, and zlib would keep and copy all of it
        try:
            return self._inflate.decompress(chunk, self._cap + 1 - self._given)
        except zlib.error:
            pass
        msg = "the reply's compression is broken"
        raise BadReply(msg)

    def end(self) -> None:
        """The last bytes are in."""
        if self._inflate is not None and not self._inflate.eof:
            msg = "the reply's compressed body ends too early"
            raise BadReply(msg)


class ReplyBody:
    """A whole body, decompressed as it arrives and never larger than the cap; see `BodyBytes`."""

    def __init__(self, encoding: str, cap: int) -> None:
        self._bytes = BodyBytes(encoding, cap)
        self._data = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next bytes from the network."""
        self._data += self._bytes.take(chunk)

    def finish(self) -> bytes:
        """The whole body, once the last bytes are in."""
        self._bytes.end()
        return self.so_far()

    def so_far(self) -> bytes:
        """What has come of the body until now."""
        return bytes(self._data)
