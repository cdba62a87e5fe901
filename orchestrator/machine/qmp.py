# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's control socket (QMP), for code that does not run in an event loop.

The protocol is the ``qemu.qmp`` library's; it runs in an event loop on a thread of its own.
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
    """The command was refused, or QEMU is not there to answer; the message is QEMU's."""


class Qmp:
    """A control socket that we listen on and QEMU connects to, so that nothing has to wait for a file to appear.

    Args:
        socket: path of the Unix socket, at most 107 bytes (unix(7)).
        on_event: called on the event loop's thread with an event's name and data; it must not block.
    """

    def __init__(self, socket: Path, on_event: EventHandler | None = None) -> None:
        # Here, for most commands start no machine, and the library takes a while to import.
        from qemu.qmp import QMPClient

        self._on_event = on_event
        self._client = QMPClient("orchestrate")
        # The library logs each disconnection as an error; that QEMU is gone is for the machine to judge.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._listener: asyncio.Task[None] | None = None
        self._await(self._client.start_server(str(socket)), 10.0)

    def accept(self, timeout_s: float) -> bool:
        """Wait until QEMU has connected.

        Args:
            timeout_s: seconds; call again to wait longer.

        Returns:
            whether it has.
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
        """Run a QMP command (QEMU QMP Reference Manual) and return its answer.

        Raises:
            QmpError: it was refused, or QEMU did not answer within `timeout_s` seconds.
        """
        return self._await(self._client.execute(command, arguments), timeout_s)

    def monitor(self, command: str, timeout_s: float = 10.0) -> str:
        """Run a command of the human monitor, e.g. ``info numa``, and return what it prints.

        Raises:
            QmpError: as of :meth:`execute`.
        """
        return str(self.execute("human-monitor-command", {"command-line": command}, timeout_s))

    def close(self) -> None:
        """Disconnect and end the thread; harmless when repeated."""
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
        with contextlib.suppress(Exception):  # the peer being gone already is what we want
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
