"""Endless answers: server-sent events and motion JPEG, to clients that may stop reading at any time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
PATIENCE_S = 15.0  # a client that reads nothing for this time is dropped


async def within(seconds: float, waits: Awaitable[T]) -> T:
    """The result of an awaitable. Raises asyncio.TimeoutError if there is none in time.

    Before Python 3.12 asyncio.wait_for loses a cancellation at the time of the result, and the task continues.
    """
    task = asyncio.ensure_future(waits)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise asyncio.TimeoutError
    return task.result()


class Endless(Response):
    """An answer of chunks, until the client stops reading or there are no more.

    chunks: the next chunk is requested when the one before has left the buffer of the connection. So chunks are new,
    and a slow client has one chunk in memory at most. It is closed at the end.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            await self._chunks.aclose()
            return
        tasks = {asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_gone(receive))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._chunks.aclose()

    async def _write(self, send: Send) -> None:
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                # An empty part is written when the part before it has left the buffer.
                part = send({"type": "http.response.body", "body": b"", "more_body": True})
                await within(PATIENCE_S, part)
            await within(PATIENCE_S, send({"type": "http.response.body", "body": b""}))
        except asyncio.TimeoutError:
            return


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
