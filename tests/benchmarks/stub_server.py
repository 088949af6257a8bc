"""A model server that answers at once with the same reply: run as a process of its own, it prints its port.

A bare asyncio protocol with pre-rendered replies, one whole and one of 73 pieces for requests that ask for a
stream, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Yes, it does."},
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)
) + REPLY

PIECES = 73


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    data = b"data: " + json.dumps({**whole, "choices": [choice]}).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    *(_event({"content": f" word{number}"}) for number in range(PIECES)),
    _event({}, "stop"),
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
]


class Stub(asyncio.Protocol):
    """Answers each request once its body is complete; keeps the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = self.length_of(self.buffer[:end].lower())
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            assert isinstance(self.transport, asyncio.Transport)
            if b'"stream":true' in body.replace(b" ", b""):
                self.send(iter(STREAM))
            else:
                self.transport.write(ANSWER)

    def send(self, parts: Iterator[bytes]) -> None:
        """One part in each turn of the loop, as a model does that writes word by word."""
        for part in parts:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(part)
            asyncio.get_running_loop().call_soon(self.send, parts)
            return

    @staticmethod
    def length_of(head: bytes) -> int:
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line.split(b":")[1])
        return 0


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The benchmark closes our stdin when it is done, or dies.
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
