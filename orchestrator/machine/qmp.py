# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's control socket (QMP), for code that does not run in an event loop.

The ``qemu.qmp`` library implements the protocol; it runs in an event loop in a separate thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
EventHandler = Callable[[str, Mapping[str, Any]], None]


class QmpError(Exception):
    """QEMU rejected the command or did not answer; the message is QEMU's, if there is one."""


class Qmp:
    """The control socket. We listen and QEMU connects, so that there is no need to wait for a socket to appear.

    Args:
        socket: path of the Unix socket, at most 107 bytes (unix(7)).
        on_event: called in the thread of the event loop with name and data of an event; it must not block.
        listen: whether QEMU connects to us; if not, we connect to a QEMU that another process has started.

    Raises:
        QmpError: nobody serves the socket that we are to connect to.
    """

    def __init__(self, socket: Path, on_event: EventHandler | None = None, *, listen: bool = True) -> None:
        # Imported here: most commands start no machine, and the import is slow.
        from qemu.qmp import QMPClient

        self._on_event = on_event
        self._client = QMPClient("orchestrate")
        # The library logs each disconnection as an error, but only the machine knows whether it is one.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._listener: asyncio.Task[None] | None = None
        try:
            begin = self._client.start_server if listen else self._client.connect
            self._await(begin(str(socket)), 10.0)
        except BaseException:
            self.close()
            raise

    def accept(self, timeout_s: float) -> bool:
        """Wait until QEMU has connected.

        Args:
            timeout_s: host seconds to wait; call again to wait longer.

        Returns:
            Whether it has connected.
        """
        if not hasattr(self, "_accepting"):
            self._accepting = asyncio.run_coroutine_threadsafe(self._accept(), self._loop)
        try:
            self._accepting.result(timeout_s)
        except TimeoutError:
            return False
        except _library_error() as error:
            raise QmpError(str(error)) from error
        return True

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout_s: float = 10.0
    ) -> Any:
        """Run a QMP command (QEMU QMP Reference Manual) and return its result.

        Raises:
            QmpError: QEMU rejected it, or did not answer within `timeout_s` host seconds.
        """
        return self._await(self._client.execute(command, arguments), timeout_s)

    def monitor(self, command: str, timeout_s: float = 10.0) -> str:
        """Run a command of the human monitor, e.g. ``info numa``, and return its output.

        Raises:
            QmpError: as for :meth:`execute`.
        """
        return str(self.execute("human-monitor-command", {"command-line": command}, timeout_s))

    def close(self) -> None:
        """Disconnect and end the thread. May be called repeatedly."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._await(self._disconnect(), 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()

    async def _accept(self) -> None:
        await self._client.accept()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._client.events:
            if self._on_event is not None:
                data = message.get("data", {})
                self._on_event(str(message["event"]), data if isinstance(data, Mapping) else {})

    async def _disconnect(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
        with contextlib.suppress(Exception):  # it is fine if the peer is gone already
            await self._client.disconnect()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _await(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        if self._loop.is_closed():
            coroutine.close()
            raise QmpError("the control socket is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            future.cancel()
            raise QmpError(f"QEMU did not answer within {timeout_s:g} s") from error
        except _library_error() as error:
            raise QmpError(str(error)) from error


def _library_error() -> type[Exception]:
    from qemu.qmp import QMPError

    error: type[Exception] = QMPError
    return error
