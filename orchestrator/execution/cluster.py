# SPDX-License-Identifier: GPL-2.0-only
"""Cells on a Dask cluster: artefacts are sent once per worker, and results and logs are returned.

A worker only needs this package and QEMU: kernels and the guest image are sent with the cells. A worker thread runs
one guest at a time, so a worker with N threads runs N guests.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client, Event, get_client
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError
from orchestrator.events import Events
from orchestrator.execution.bench import Bench, Shipped
from orchestrator.execution.measured_cell import CellResult, measure_cell
from orchestrator.execution.place import scheduler_of
from orchestrator.experiment.cell import Cell
from orchestrator.experiment.experiment import Experiment
from orchestrator.guest.image import GuestImage
from orchestrator.guest.workload import Workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.series import Series
from orchestrator.machine.accelerator import Accelerator
from orchestrator.project import Project
from orchestrator.store.outcome import Outcome
from orchestrator.temporary import make_temporary, remove_temporary, sweep_temporary, temporary_directory

_CONNECT_TIMEOUT_S = 10
#: Host seconds to wait for a worker that takes the place of the last one.
_WORKER_TIMEOUT_S = 30
#: What a future raises if its worker died: the cell, the shipment, or the connection to the scheduler is gone.
_WORKER_DIED = (
    KilledWorker,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    CommClosedError,
    TimeoutError,
)


@dataclass(frozen=True)
class Shipment:
    """Everything that cells need on a worker: files as bytes, the rest as values.

    Args:
        kernels: patchset -> the kernel and its files, without the vmlinux, which only gdb needs.
        images: the guest images and their files, by their layers.
    """

    kernels: Mapping[str, tuple[KernelBuild, Mapping[str, bytes]]]
    images: Mapping[tuple[str, ...], tuple[GuestImage, Mapping[str, bytes]]]
    series: Series
    workloads: Mapping[str, Workload]
    accelerator: Accelerator
    flavour: str


@dataclass(frozen=True)
class Returned:
    """The result of a cell, and the files of its log directory."""

    result: CellResult
    logs: Mapping[str, bytes]


class Cluster:
    """A Dask cluster that measures cells.

    Args:
        address: ``dask://HOST:PORT`` of its scheduler.

    Raises:
        UserError: the address is malformed.
        InfrastructureError: the scheduler does not respond, or has no worker.
    """

    def __init__(self, address: str) -> None:
        host = scheduler_of(address)
        try:
            self._client = Client(f"tcp://{host}", timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise InfrastructureError(
                f"no Dask scheduler responds at {host} ({error}); start one there."
            ) from error
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            self._client.close()
            raise InfrastructureError(
                f"the Dask scheduler at {host} has no worker; start `dask worker {host}`."
            )
        self.slots = sum(worker["nthreads"] for worker in workers.values())
        self._shipment: Any = None
        self._content: Shipment | None = None
        self._shipping = threading.Lock()
        self._stop = Event(client=self._client)

    def ship(self, bench: Bench, kernels: Mapping[str, KernelBuild]) -> None:
        """Send what all cells share to every worker.

        Args:
            kernels: patchset -> its kernel.
        """
        self._content = Shipment(
            {patchset: (kernel, _files(kernel.directory)) for patchset, kernel in kernels.items()},
            {layers: (image, _files(image.directory)) for layers, image in bench.images.items()},
            bench.series,
            dict(bench.workloads),
            bench.accelerator,
            bench.flavour,
        )
        self._shipment = self._client.scatter(self._content, broadcast=True, hash=False)

    def measure(self, cell: Cell, experiment: Experiment, log_directory: Path) -> CellResult:
        """Measure one cell on a worker; blocks until it ends. If the worker dies, the cell is lost."""
        assert self._shipment is not None, "ship() must be called first"
        try:
            future = self._client.submit(
                measure_shipped,
                cell,
                experiment,
                self._shipped(),
                self._stop.name,
                pure=False,
                key=f"cell-{cell.id}",
            )
            try:
                returned: Returned = future.result()
            finally:
                future.release()
        except _WORKER_DIED as error:
            return CellResult(cell, Outcome.LOST, f"the worker that measured it died: {error}")
        log_directory.mkdir(parents=True, exist_ok=True)
        for name, content in returned.logs.items():
            (log_directory / name).write_bytes(content)
        return returned.result

    def _shipped(self) -> Any:
        """The shipment on the workers; it is sent again if the last worker that had it died."""
        with self._shipping:
            if self._shipment.status in ("cancelled", "lost"):
                self._shipment = self._client.scatter(
                    self._content, broadcast=True, hash=False, timeout=_WORKER_TIMEOUT_S
                )
            return self._shipment

    def abort(self) -> None:
        """End every guest on every worker."""
        self._stop.set()


def measure_shipped(cell: Cell, experiment: Experiment, shipment: Shipment, stop: str) -> Returned:
    """On a worker: unpack the shipment, once per process, and measure one cell.

    Args:
        stop: name of the distributed event that ends every guest.
    """
    home = _unpacked(shipment)
    shipped = Shipped(
        shipment.series,
        shipment.workloads,
        _same_accelerator(shipment.accelerator),
        {
            layers: replace(image, directory=home / image.digest)
            for layers, (image, _) in shipment.images.items()
        },
    )
    bench = Bench(Project(home), Cache(home / "cache"), Events(), flavour=shipment.flavour, shipped=shipped)
    patchset = experiment.variant(cell.variant).patchset
    kernel = replace(shipment.kernels[patchset][0], directory=home / "kernels" / patchset)
    with (
        aborted_when_asked(stop, bench.abort),
        temporary_directory("cell") as logs,
    ):
        result = measure_cell(cell, experiment, bench, kernel, Path(logs))
        return Returned(result, _files(Path(logs)))


@contextmanager
def aborted_when_asked(stop: str, abort: Callable[[], None]) -> Iterator[None]:
    """On a worker, in the thread of a task: call `abort` if the event is set while the block runs.

    Args:
        stop: name of the distributed event.
    """
    # Only the thread of a task can find the worker's client.
    asked = Event(stop, client=get_client())
    finished = threading.Event()

    def watch() -> None:
        while not finished.is_set():
            if asked.wait(timeout=1):
                abort()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _same_accelerator(asked: Accelerator) -> Accelerator:
    """The accelerator of this worker, which must be equivalent to that of the run.

    Raises:
        InfrastructureError: it is not.
    """
    own = Accelerator.named(asked.name, asked.reason, asked.program)
    if (own.cpu, own.qemu) != (asked.cpu, asked.qemu):
        raise InfrastructureError(
            f"a worker has QEMU {own.qemu} with CPU model {own.cpu}, and the run QEMU {asked.qemu} with {asked.cpu}: "
            "install the same QEMU on all hosts of the cluster."
        )
    return own


_unpack_lock = threading.Lock()
_homes: dict[str, Path] = {}


def _unpacked(shipment: Shipment) -> Path:
    images = [image.digest for image, _ in shipment.images.values()]
    key = "".join([*images, *(kernel.digest for kernel, _ in shipment.kernels.values())])
    with _unpack_lock:  # several threads of a worker may start at the same time
        if key not in _homes:
            sweep_temporary()  # of workers that were killed
            home = make_temporary("shipment")
            atexit.register(remove_temporary, home)
            for image, files in shipment.images.values():
                _write(home / image.digest, files)
            for patchset, (_, files) in shipment.kernels.items():
                _write(home / "kernels" / patchset, files)
            _homes[key] = home
        return _homes[key]


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "vmlinux"
    }


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)  # SSH rejects a key that others can read
