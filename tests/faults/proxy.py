"""TCP proxy that delays every piece of data, as a slow network does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final

_CHUNK_BYTES: Final = 64 * 1024


class Proxy:
    """Listens on ``port`` of this machine and passes on to ``target``, both ways.

    Attributes:
        delay_s: delay of each piece in each direction; may change at any time.
    """

    def __init__(self, port: int, target: str) -> None:
        self.delay_s = 0.0
        self._port = port
        host, _, target_port = target.rpartition(":")
        self._target = host, int(target_port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", self._port), self._loop
        ).result()

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            own = asyncio.current_task()
            pending = [task for task in asyncio.all_tasks() if task is not own]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()
