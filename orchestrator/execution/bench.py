# SPDX-License-Identifier: GPL-2.0-only
"""The bench: what every cell shares (series, image, accelerator), and a booted guest of a variant."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator.cache import Artefact, Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.execution.durations import Durations
from orchestrator.execution.ending import Ending, GuestEnded, ending_of
from orchestrator.experiment.experiment import ACCELERATORS
from orchestrator.experiment.knob import knob_path
from orchestrator.guest.image import GuestImage, image_artefact
from orchestrator.guest.selftests import SelftestPlan, Selftests, load_selftests, selftests_artefact
from orchestrator.guest.ssh import Guest
from orchestrator.guest.topology_check import verify
from orchestrator.guest.workload import Workload, load_workloads
from orchestrator.kernel.build import KernelBuild, kernel_artefact
from orchestrator.kernel.config import Configuration, configuration
from orchestrator.kernel.elf import build_id_of_notes
from orchestrator.kernel.series import BASELINE, Series, load_series
from orchestrator.kernel.source import Origin, SourceTree, find_origin, source_artefact
from orchestrator.kernel.tree import PatchedTree, apply_stages
from orchestrator.machine.accelerator import Accelerator, choose_accelerator
from orchestrator.machine.oops import Finding
from orchestrator.machine.qemu import Machine, MachineFailure
from orchestrator.machine.topology import Topology
from orchestrator.project import Project
from orchestrator.spelling import hint
from orchestrator.store.outcome import Outcome

#: Host seconds from QEMU's start to SSH. TCG on a loaded host needs many; debugging kernels more.
BOOT_TIMEOUT_S = 300.0
#: Host seconds in which the machine notices that its guest is gone.
_REASON_S = 1.0


@dataclass(frozen=True)
class Booted:
    """A guest that is up: verified topology, verified kernel, knobs set.

    Args:
        boot_s: host seconds from QEMU's start.
        counts: whether a report of the kernel counts as one; all do unless the caller says otherwise.
    """

    machine: Machine
    guest: Guest
    boot_s: float
    counts: Callable[[Finding], bool] = lambda finding: True

    def findings(self) -> list[Finding]:
        """What the kernel has reported so far."""
        return [finding for finding in self.machine.findings() if self.counts(finding)]

    def ending(self, error: Exception | None = None, *, since: int = 0) -> Ending:
        """How the guest has ended, or is.

        Args:
            error: what stopped the work in it; None where nothing did.
            since: leave out so many of the first findings.

        Raises:
            Exception: `error`, where it does not concern the guest.
        """
        ending = ending_of(error, self.findings()[since:], self.machine.failure)
        if ending is None:
            assert error is not None
            raise error
        return ending


@dataclass(frozen=True)
class Shipped:
    """Parts of a bench that another host has made.

    Args:
        images: by their layers.
    """

    series: Series
    workloads: Mapping[str, Workload]
    accelerator: Accelerator
    images: Mapping[tuple[str, ...], GuestImage]


@dataclass(frozen=True, eq=False)
class Bench:
    """What the cells of a run share; each part is made once, when first needed.

    Args:
        source: ``--source``, see :func:`find_origin`; None for Debian's package.
        accelerator_request: see :func:`choose_accelerator`.
        flavour: kernel configuration.
        series_directory: of another series than the project's.
        shipped: parts that need not be made here.
    """

    project: Project
    cache: Cache
    events: Events
    source: str | None = None
    accelerator_request: str = "auto"
    flavour: str = "measure"
    build_jobs: int | None = None
    series_directory: Path | None = None
    shipped: Shipped | None = None
    _images: dict[tuple[str, ...], GuestImage] = field(default_factory=dict)
    _machines: set[Machine] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _image_lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def series(self) -> Series:
        """The staged series: of this project, or the one that was asked for."""
        if self.shipped is not None:
            return self.shipped.series
        return load_series(self.series_directory or self.project.kernel_patches)

    @cached_property
    def workloads(self) -> Mapping[str, Workload]:
        """The guest programs, by name."""
        if self.shipped is not None:
            return self.shipped.workloads
        return load_workloads(self.project.guest_workloads)

    @cached_property
    def durations(self) -> Durations:
        """How long things take on this host."""
        return Durations(self.cache)

    @cached_property
    def origin(self) -> Origin:
        """Where the kernel source comes from.

        Raises:
            UserError: there is no such source.
            InfrastructureError: this host can get no version of the package.
        """
        bases = self.series.bases
        return find_origin(self.source, bases.package, self.cache, bases.versions)

    @property
    def unchecked_base(self) -> str | None:
        """What to say where the source is a package version that the series is not checked on."""
        package, bases = self.origin.package, self.series.bases
        if package is None or package.version in bases.versions:
            return None
        return f"the series is not checked on {package}, but on {bases}"

    @cached_property
    def source_tree(self) -> SourceTree:
        """The unpatched kernel source, imported."""
        if self.unchecked_base:
            with self.events.step("kernel source") as step:
                step.note(self.unchecked_base)
        return source_artefact(self.origin, self.cache, self.events).obtain()

    @property
    def image(self) -> GuestImage:
        """The guest's root file system, without layers."""
        return self.image_with(())

    def image_with(self, layers: Sequence[str]) -> GuestImage:
        """The guest's root file system with these layers."""
        key = tuple(layers)
        if self.shipped is not None:
            return self.shipped.images[key]
        with self._image_lock:
            if key not in self._images:
                self._images[key] = self._image_artefact(key, self._selftests).obtain()
            return self._images[key]

    @property
    def images(self) -> Mapping[tuple[str, ...], GuestImage]:
        """The images made so far, by their layers."""
        return dict(self._images)

    @cached_property
    def accelerator(self) -> Accelerator:
        """How the guest's instructions are executed, and why."""
        if self.shipped is not None:
            return self.shipped.accelerator
        return choose_accelerator(self.accelerator_request, self.cache, self.events)

    def check(self) -> None:
        """Look at what was asked for, before anything slow starts.

        Raises:
            UserError: no such accelerator or kernel configuration.
        """
        if self.accelerator_request not in ACCELERATORS:
            wanted = self.accelerator_request
            raise UserError(f"--accel {wanted}: unknown accelerator; {hint(wanted, ACCELERATORS, 'choose')}")
        self.configuration()

    def configuration(self, dwarf: bool = False) -> Configuration:
        """The kernel configuration of this bench's flavour."""
        return configuration(self.project.vm_images, self.flavour, dwarf)

    def tree(self, patchset: str) -> PatchedTree:
        """The source with the stages of `patchset` applied."""
        return apply_stages(self.source_tree, self.series.select(patchset), self.cache, self.events)

    def kernel(self, patchset: str, dwarf: bool = False) -> KernelBuild:
        """The kernel of `patchset`, built or from the cache."""
        return self._kernel_artefact(patchset, dwarf).obtain()

    def has_kernel(self, patchset: str) -> bool:
        """Whether the kernel of `patchset` is in the cache; at most its stages are applied to find out."""
        return self.has_source() and self._kernel_artefact(patchset).is_made

    def _kernel_artefact(self, patchset: str, dwarf: bool = False) -> Artefact[KernelBuild]:
        configuration = self.configuration(dwarf)
        return kernel_artefact(self.tree(patchset), configuration, self.cache, self.events, self.build_jobs)

    def has_source(self) -> bool:
        """Whether the kernel source is in the cache."""
        try:
            return self.origin.is_imported(self.cache)
        except InfrastructureError:  # no package lists yet: then it is not imported either
            return False

    def has_image(self, layers: Sequence[str] = ()) -> bool:
        """Whether the guest image with these layers is in the cache."""
        selftests = self._selftests if self.has_source() else None
        return self._image_artefact(layers, selftests).is_made

    def _image_artefact(
        self, layers: Sequence[str], selftests: Callable[[], Artefact[Selftests]] | None
    ) -> Artefact[GuestImage]:
        return image_artefact(self.project, self.cache, self.events, layers, selftests)

    @cached_property
    def selftest_plan(self) -> SelftestPlan:
        """The kernel's own selftests that run."""
        return load_selftests(self.project.vm_images / "guest" / "selftests.toml")

    def _selftests(self) -> Artefact[Selftests]:
        """The kernel's own, of the unpatched source: one program for all variants."""
        return selftests_artefact(self.tree(BASELINE), self.selftest_plan, self.cache, self.events)

    @contextmanager
    def boot(
        self,
        kernel: KernelBuild,
        topology: Topology,
        *,
        log_directory: Path,
        knobs: Mapping[str, str] | None = None,
        cmdline: Sequence[str] = (),
        gdb: bool = False,
        layers: Sequence[str] = (),
        counts: Callable[[Finding], bool] = lambda finding: True,
    ) -> Iterator[Booted]:
        """Boot `kernel` and connect; the guest is gone when the block is left.

        Args:
            log_directory: where console, QEMU command line and SSH transcript are written.
            knobs: set before the block begins, and read back.
            layers: of the guest image.
            counts: whether a report of the kernel counts as one.

        Raises:
            GuestEnded: it did not come up, came up as something else than what was asked for, or ended before the
                block did. That is what every exception in the block becomes that concerns the guest.
        """
        image = self.image_with(layers)
        machine = Machine(
            kernel.bzimage,
            image.initramfs,
            topology,
            self.accelerator,
            cmdline,
            log_directory,
            gdb=gdb,
            events=self.events,
        )
        is_up = False
        with ExitStack() as stack:
            try:
                stack.enter_context(machine)
                with self._lock:
                    self._machines.add(machine)
                stack.callback(self._forget, machine)
                boot_s = machine.boot(BOOT_TIMEOUT_S)
                guest = stack.enter_context(
                    Guest.connect(
                        machine.ssh_port, image, BOOT_TIMEOUT_S, log_directory / "ssh.log", machine.why
                    )
                )
                machine.on_failure(guest.abort)
                self._verify(guest, kernel, topology)
                for key, value in (knobs or {}).items():
                    self._set_knob(guest, key, value)
                is_up = True
                yield Booted(machine, guest, boot_s, counts)
            except GuestEnded:
                raise
            except Exception as error:
                if is_up and isinstance(error, InfrastructureError):
                    machine.why(_REASON_S)  # what talked to the guest may have noticed first that it is gone
                findings = [finding for finding in machine.findings() if counts(finding)]
                ending = ending_of(error, findings, machine.failure, is_up=is_up)
                if ending is None:
                    raise
                raise GuestEnded(ending, machine.console_log) from error

    def abort(self) -> None:
        """End every guest at once, e.g. on Ctrl-C; whoever waits for one is told that it is lost."""
        with self._lock:
            machines = list(self._machines)
        for machine in machines:
            machine.close()

    def _forget(self, machine: Machine) -> None:
        with self._lock:
            self._machines.discard(machine)

    @staticmethod
    def _verify(guest: Guest, kernel: KernelBuild, topology: Topology) -> None:
        try:
            running = build_id_of_notes(guest.read_bytes("/sys/kernel/notes"))
            differences = verify(guest, topology)
        except UserError as error:  # it was we who asked
            raise MachineFailure(Outcome.BOOT_FAILED, str(error)) from error
        if running != kernel.build_id:
            raise MachineFailure(
                Outcome.BOOT_FAILED, f"the guest runs kernel {running}, but {kernel.build_id} was built"
            )
        if differences:
            raise MachineFailure(
                Outcome.BOOT_FAILED,
                "the guest's topology is not what was asked for: " + "; ".join(differences),
            )

    def _set_knob(self, guest: Guest, key: str, value: str) -> None:
        path = knob_path(key, self.series)
        try:
            guest.write_text(path, value)
        except UserError as error:  # what was asked for is known to be right: it is this kernel that refuses
            raise MachineFailure(Outcome.BOOT_FAILED, str(error)) from error
        # A multiple choice reads back as "always [madvise] never".
        words = guest.read_text(path).split()
        if value not in words and f"[{value}]" not in words:
            raise MachineFailure(
                Outcome.BOOT_FAILED, f"knob {key} was set to {value} but reads {' '.join(words)}"
            )
