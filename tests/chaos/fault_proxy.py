"""A TCP port in front of a server that can refuse, cut, stall, delay, and keep back the answer to a commit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PIECE = 1 << 16


@dataclass(eq=False)
class _Connection:
    """A client's and the server's end of one connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    commit_sent: bool = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


@dataclass(eq=False)
class FaultProxy:
    """Passes everything on until it is told otherwise. Its loop runs in a thread; its methods are for other threads.

    ``server`` is the path of a unix socket, or a port of the loopback interface.
    """

    server: Path | int
    port: int = 0
    commits_swallowed: int = 0
    refused: int = 0
    held: bytes | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _connections: set[_Connection] = field(default_factory=set)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _away: bool = False
    _delay_s: float = 0.0
    _commits_until_swallow: int | None = None
    _every: int | None = None
    _stall_before: bytes | None = None

    def __post_init__(self) -> None:
        self._flows = asyncio.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.port = self._listener.sockets[0].getsockname()[1]

    def url(self, through: str) -> str:
        """The same database as the URL ``through`` a unix socket, behind this proxy."""
        return through.split("?")[0].replace("@/", f"@127.0.0.1:{self.port}/")

    def cut(self) -> None:
        """The server is away: every connection breaks, and new ones are closed at once."""
        self._away = True
        self.reset()

    def mend(self) -> None:
        """All that was begun is over."""
        self._away, self._delay_s, self._commits_until_swallow, self._stall_before = False, 0.0, None, None
        self._call(self._flows.set)

    def reset(self) -> None:
        """Every connection breaks; new ones are welcome."""
        self._call(self._abort_all)

    def stall(self, *, before: bytes = b"") -> None:
        """Once a client sends something that contains ``before``, nothing comes through in either direction.

        That piece neither, which is ``held``, and nobody is told; all of it arrives once mended.
        """
        self.held, self._stall_before = None, before

    def delay(self, seconds: float) -> None:
        """Each piece takes so much longer in each direction."""
        self._delay_s = seconds

    def swallow_commits(self, *, after: int = 0, every: int | None = None) -> None:
        """Pass the COMMIT after so many others on, wait until the server has answered it, and break off instead.

        Then each ``every``-th COMMIT, until mended; without it, only that one.
        """
        self._commits_until_swallow, self._every = after, every

    def close(self) -> None:
        self.cut()
        self._call(self._end)
        self._thread.join(timeout=10)
        self._loop.close()

    def _call(self, act: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(act)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(10), "the proxy's loop does not turn"

    def _abort_all(self) -> None:
        for connection in self._connections:
            connection.abort()

    def _end(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        # After the tasks have seen their cancellation.
        self._loop.call_later(0.05, self._loop.stop)

    async def _accept(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(from_client, client)
        client.transport.abort()
        self._tasks.discard(task)

    async def _connect(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._away:
            self.refused += 1
            return
        if isinstance(self.server, Path):
            from_server, server = await asyncio.open_unix_connection(str(self.server))
        else:
            from_server, server = await asyncio.open_connection("127.0.0.1", self.server)
        connection = _Connection(client, server)
        self._connections.add(connection)
        try:
            await asyncio.gather(
                self._pump(connection, from_client, server), self._pump(connection, from_server, client)
            )
        finally:
            connection.abort()
            self._connections.discard(connection)

    async def _pump(self, connection: _Connection, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(PIECE):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if target is connection.server and self._stall_before is not None and self._stall_before in piece:
                self.held, self._stall_before = piece, None
                self._flows.clear()
            await self._flows.wait()
            if target is connection.server:
                self._note_commit(connection, piece)
            elif connection.commit_sent:
                self.commits_swallowed += 1
                connection.abort()
                return
            target.write(piece)
            await target.drain()
        with contextlib.suppress(OSError, RuntimeError):
            target.write_eof()

    def _note_commit(self, connection: _Connection, piece: bytes) -> None:
        if b"COMMIT" not in piece or self._commits_until_swallow is None:
            return
        if self._commits_until_swallow:
            self._commits_until_swallow -= 1
        else:
            connection.commit_sent = True
            self._commits_until_swallow = self._every
