# SPDX-License-Identifier: GPL-2.0-only
"""The bench: what all cells share (series, image, accelerator), and a booted guest of a variant."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from orchestrator.cache import Artefact, Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.execution.durations import Durations
from orchestrator.execution.ending import Ending, GuestEnded, ending_of
from orchestrator.execution.keeper import Keeper
from orchestrator.experiment.experiment import ACCELERATORS
from orchestrator.experiment.knob import SWAP, is_named, knob_path, reads_back
from orchestrator.guest.image import GuestImage, image_artefact
from orchestrator.guest.selftests import SelftestPlan, Selftests, load_selftests, selftests_artefact
from orchestrator.guest.ssh import CommandFailed, Guest, GuestLost, check_loopback
from orchestrator.guest.swap import add_swap
from orchestrator.guest.topology_check import verify
from orchestrator.guest.workload import Workload, known_workloads, own_directories
from orchestrator.kernel.build import KernelBuild, kernel_artefact
from orchestrator.kernel.config import Configuration, configuration
from orchestrator.kernel.decoding import AddressDecoder, source_of_tree
from orchestrator.kernel.elf import build_id_of_notes
from orchestrator.kernel.prebuilt import prebuilt_artefact
from orchestrator.kernel.series import BASELINE, OtherKernel, Series, load_series
from orchestrator.kernel.source import Origin, SourceTree, find_origin, source_artefact, with_commit
from orchestrator.kernel.tree import PatchedTree, apply_stages
from orchestrator.machine.accelerator import QEMU, Accelerator, choose_accelerator
from orchestrator.machine.oops import Finding
from orchestrator.machine.qemu import Machine, MachineFailure, Plugin, Sockets, qemu_argv
from orchestrator.machine.qmp import QmpError
from orchestrator.machine.saved_boot import SavedBoot
from orchestrator.machine.shortcut import Shortcuts, shortcuts
from orchestrator.machine.topology import NodeMemory, Topology
from orchestrator.project import Project
from orchestrator.spelling import hint
from orchestrator.store.outcome import Outcome
from orchestrator.temporary import temporary_directory

#: Timeout in host seconds from QEMU's start to SSH. TCG on a loaded host is slow, and debug kernels even more so.
BOOT_TIMEOUT_S = 300.0
#: Kind of saved boots in the cache, and their greatest size together before another one is saved.
SAVED_BOOT = "boot"
SAVED_BOOTS_BYTES = 4 << 30
#: Host seconds for the machine to notice that its guest has ended.
_REASON_S = 1.0


@dataclass(frozen=True)
class Booted:
    """A guest that is up: verified topology, verified kernel, knobs set.

    Args:
        boot_s: duration of the boot in host seconds, from QEMU's start.
        counts: whether to count a report of the kernel; default: all are counted.
        decode: adds source lines to reports of the kernel.
        is_clone: whether it is a clone of a saved boot.
    """

    machine: Machine
    guest: Guest
    boot_s: float
    counts: Callable[[Finding], bool] = lambda finding: True
    decode: Callable[[Sequence[Finding]], list[Finding]] = list
    is_clone: bool = False

    def findings(self) -> list[Finding]:
        """The kernel's reports so far."""
        return [finding for finding in self.machine.findings() if self.counts(finding)]

    def ending(self, error: Exception | None = None, *, since: int = 0) -> Ending:
        """How the guest has ended, or its current state.

        Args:
            error: the exception that stopped the work; None if there was none.
            since: number of findings to skip at the start.

        Raises:
            Exception: `error`, if it does not concern the guest.
        """
        ending = ending_of(error, self.decode(self.findings()[since:]), self.machine.failure)
        if ending is None:
            assert error is not None
            raise error
        return ending


@dataclass(frozen=True)
class _Asked:
    """What determines a guest, apart from the bench."""

    kernel: KernelBuild
    image: GuestImage
    topology: Topology
    cmdline: tuple[str, ...]
    gdb: bool
    plugin: Plugin | None = None


class _NotSavedError(Exception):
    """A boot must not be cloned."""


@dataclass(frozen=True)
class Shipped:
    """Parts of a bench that were built on another host.

    Args:
        images: guest images by their layers.
    """

    series: Series
    workloads: Mapping[str, Workload]
    accelerator: Accelerator
    images: Mapping[tuple[str, ...], GuestImage]


@dataclass(frozen=True, eq=False)
class Bench:
    """What the cells of a run share; each part is created when first needed.

    Args:
        source: ``--source``, see :func:`find_origin`; None for Debian's package.
        accelerator_request: see :func:`choose_accelerator`.
        flavour: kernel configuration.
        series_directory: directory of another series than that of the project.
        shipped: parts that need not be built on this host.
        others: kernels with a source or a series of their own: patchset -> kernel.
        qemu: the QEMU to start, a name or an absolute path.
        dwarf: build all kernels with debugging information.
        keeper: keeps guests that failed, stopped, for gdb; None to end them.
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
    others: Mapping[str, OtherKernel] = field(default_factory=dict)
    qemu: str = QEMU
    keeper: Keeper | None = None
    dwarf: bool = False
    _sources: dict[str, SourceTree] = field(default_factory=dict)
    _images: dict[tuple[str, ...], GuestImage] = field(default_factory=dict)
    _given_workloads: dict[str, Workload] = field(default_factory=dict)
    _origins: dict[str, Origin] = field(default_factory=dict)
    _decoders: dict[str, AddressDecoder] = field(default_factory=dict)
    _machines: set[Machine] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _image_lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def series(self) -> Series:
        """The patch series: that of the project, or the requested one."""
        if self.shipped is not None:
            return self.shipped.series
        series = load_series(self.series_directory or self.project.kernel_patches)
        return series.with_others(self.others) if self.others else series

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """The workloads, by name: those that were given, or all that are known."""
        return self._given_workloads or self._known_workloads

    def use_workloads(self, workloads: Mapping[str, Workload]) -> None:
        """Use these workloads, which a command line can add to."""
        self._given_workloads.update(workloads)

    @cached_property
    def _known_workloads(self) -> Mapping[str, Workload]:
        if self.shipped is not None:
            return self.shipped.workloads
        return known_workloads(self.project.guest_workloads, own_directories())

    @cached_property
    def durations(self) -> Durations:
        """Durations of earlier steps on this host."""
        return Durations(self.cache)

    @cached_property
    def origin(self) -> Origin:
        """The origin of the kernel source.

        Raises:
            UserError: there is no such source.
            InfrastructureError: no version of the package is available on this host.
        """
        bases = self.series.bases
        source = with_commit(self.source or bases.source, bases.commit)
        return find_origin(source, bases.package, self.cache, bases.versions)

    @property
    def unchecked_base(self) -> str | None:
        """A warning if the source is a package version that the series is not checked on; else None."""
        package, bases = self.origin.package, self.series.bases
        if package is None or not bases.versions or package.version in bases.versions:
            return None
        return f"the series is not checked on {package}, but on {bases}"

    @cached_property
    def source_tree(self) -> SourceTree:
        """The imported kernel source, without the series."""
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
        """The images built so far, by their layers."""
        return dict(self._images)

    @cached_property
    def accelerator(self) -> Accelerator:
        """The chosen accelerator, and the reason."""
        if self.shipped is not None:
            return self.shipped.accelerator
        return choose_accelerator(self.accelerator_request, self.cache, self.events, self.qemu)

    def check(self) -> None:
        """Check the request before any slow work.

        Raises:
            UserError: unknown accelerator or kernel configuration, or no kernel can be built in the cache.
        """
        if self.accelerator_request not in ACCELERATORS:
            wanted = self.accelerator_request
            raise UserError(f"--accel {wanted}: unknown accelerator; {hint(wanted, ACCELERATORS, 'choose')}")
        self.configuration()
        if self.cache.unfit_to_build:
            raise UserError(f"{self.cache.unfit_to_build}.")

    def configuration(self, dwarf: bool = False) -> Configuration:
        """The kernel configuration of this bench's flavour."""
        return configuration(self.project.vm_images, self.flavour, dwarf or self.dwarf)

    def is_prebuilt(self, patchset: str) -> bool:
        """Whether the kernel of `patchset` was built elsewhere, so that its source is not known."""
        other = self.others.get(patchset)
        return other is not None and other.kernel is not None

    def tree(self, patchset: str) -> PatchedTree:
        """The source with the stages of `patchset` applied; there is none for a kernel that was built elsewhere."""
        source = self._source_of(patchset)
        return apply_stages(source, self.series.select(patchset), self.cache, self.events)

    def _source_of(self, patchset: str) -> SourceTree:
        """The source of a patchset: that of the run, or its own."""
        other = self.others.get(patchset)
        if other is None or other.source is None:
            return self.source_tree
        if other.source not in self._sources:
            origin = self._origin_of(other.source)
            self._sources[other.source] = source_artefact(origin, self.cache, self.events).obtain()
        return self._sources[other.source]

    def _origin_of(self, source: str) -> Origin:
        """The origin of a variant's own source. It is asked for once: a branch may move, and an address is far away."""
        if source not in self._origins:
            self._origins[source] = find_origin(source, self.series.bases.package, self.cache)
        return self._origins[source]

    def kernel(self, patchset: str, dwarf: bool = False) -> KernelBuild:
        """The kernel of `patchset`, from the cache or newly built."""
        if self.is_prebuilt(patchset):
            return self._prebuilt(patchset).obtain()
        kernel = self._kernel_artefact(patchset, dwarf).obtain()
        # The same code, so that its source lines are those of reports.
        with_dwarf = kernel if dwarf else self._kernel_artefact(patchset, dwarf=True).existing()
        if with_dwarf is not None and kernel.digest not in self._decoders:
            tree = self.tree(patchset)
            with suppress(UserError):  # a report is worth more than its source lines
                self._decoders[kernel.digest] = AddressDecoder(
                    with_dwarf.vmlinux, source_of_tree(tree.repository, tree.tree)
                )
        return kernel

    def has_kernel(self, patchset: str) -> bool:
        """Whether the kernel of `patchset` is in the cache. This may apply its stages, but builds nothing."""
        if self.is_prebuilt(patchset):
            return True
        other = self.others.get(patchset)
        own = None if other is None else other.source
        if own is not None and not self._origin_of(own).is_imported(self.cache):
            return False
        return self.has_source() and self._kernel_artefact(patchset).is_made

    def _prebuilt(self, patchset: str) -> Artefact[KernelBuild]:
        """The kernel of `patchset`, which was built elsewhere."""
        other = self.others[patchset]
        assert other.kernel is not None
        vmlinux = None if other.vmlinux is None else Path(other.vmlinux)
        return prebuilt_artefact(Path(other.kernel), vmlinux, self.cache)

    def _kernel_artefact(self, patchset: str, dwarf: bool = False) -> Artefact[KernelBuild]:
        configuration = self.configuration(dwarf)
        return kernel_artefact(self.tree(patchset), configuration, self.cache, self.events, self.build_jobs)

    def has_source(self) -> bool:
        """Whether the kernel source is in the cache."""
        try:
            return self.origin.is_imported(self.cache)
        except InfrastructureError:  # there are no package lists, so it is not imported either
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
        """The list of kernel selftests to run."""
        return load_selftests(self.project.vm_images / "guest" / "selftests.toml")

    def _selftests(self) -> Artefact[Selftests]:
        """The kernel selftests of the baseline: all variants run the same programs."""
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
        plugin: Plugin | None = None,
        clone: bool = False,
    ) -> Iterator[Booted]:
        """Boot `kernel` and connect; the guest ends when the block is left.

        Args:
            log_directory: directory for console log, QEMU command line and SSH transcript.
            knobs: knobs to set, and read back, before the block begins.
            layers: layers of the guest image.
            counts: whether to count a report of the kernel.
            plugin: plugin of QEMU to load.
            clone: start a clone of a saved boot, if the accelerator allows it; else the guest is booted, with a note.

        Raises:
            InfrastructureError: this host cannot reach its guests, as it has no loopback interface.
            GuestEnded: the guest did not come up, differs from the request, or ended before the block did. All
                exceptions in the block that concern the guest are converted to it.
        """
        check_loopback()
        asked = _Asked(
            kernel, self.image_with(layers), topology, tuple(cmdline), gdb or self.keeper is not None, plugin
        )
        machine: Machine | None = None
        is_up = False
        with ExitStack() as stack:
            try:
                cloned = self._clone(asked, log_directory, stack) if clone else None
                if cloned is not None:
                    machine, guest, boot_s = cloned
                else:
                    machine = self._machine(asked, log_directory)
                    guest, boot_s = self._connected(asked, machine, stack)
                    self._verify(guest, kernel, topology)
                for key, value in (knobs or {}).items():
                    self._set_knob(guest, key, value)
                is_up = True
                booted = Booted(
                    machine,
                    guest,
                    boot_s,
                    counts,
                    lambda found: self._decoded(kernel, found),
                    cloned is not None,
                )
                yield booted
                if self.keeper is not None and not (now := booted.ending()).is_ok:
                    self.keeper.keep(machine, kernel, now.title)
            except GuestEnded:
                raise
            except Exception as error:
                if machine is None:
                    raise
                if is_up and isinstance(error, InfrastructureError):
                    machine.why(_REASON_S)  # the connection may have noticed the end of the guest first
                findings = [finding for finding in machine.findings() if counts(finding)]
                findings = self._decoded(kernel, findings)
                ending = ending_of(error, findings, machine.failure, is_up=is_up)
                if ending is None:
                    raise
                if self.keeper is not None:
                    self.keeper.keep(machine, kernel, ending.title)
                raise GuestEnded(ending, machine.console_log) from error

    def _machine(
        self,
        asked: _Asked,
        log_directory: Path,
        *,
        memory: Path | None = None,
        saved: SavedBoot | None = None,
    ) -> Machine:
        """A machine as it was asked for, not started yet."""
        return Machine(
            asked.kernel.bzimage,
            asked.image.initramfs,
            asked.topology,
            self.accelerator,
            asked.cmdline,
            log_directory,
            gdb=asked.gdb,
            events=self.events,
            shortcuts=self._shortcuts(asked.kernel),
            memory=memory,
            saved=saved,
            plugin=asked.plugin,
        )

    def _shortcuts(self, kernel: KernelBuild) -> Shortcuts:
        return shortcuts(kernel.vmlinux, kernel.config, self.accelerator)

    def _connected(self, asked: _Asked, machine: Machine, stack: ExitStack) -> tuple[Guest, float]:
        """Start a machine and connect to its guest; both end with `stack`.

        Returns:
            The guest, and the host seconds from QEMU's start until it was up.
        """
        stack.enter_context(machine)
        with self._lock:
            self._machines.add(machine)
        stack.callback(self._forget, machine)
        boot_s = machine.boot(BOOT_TIMEOUT_S)
        guest = stack.enter_context(
            Guest.connect(
                machine.ssh_port, asked.image, BOOT_TIMEOUT_S, machine.log_dir / "ssh.log", machine.why
            )
        )
        machine.on_failure(guest.abort)
        return guest, boot_s

    # --- clones ------------------------------------------------------------------------------------------------

    def _clone(
        self, asked: _Asked, log_directory: Path, stack: ExitStack
    ) -> tuple[Machine, Guest, float] | None:
        """A clone of a saved boot; the boot is saved first, if it is not yet. None if there is to be a boot instead."""
        if self.accelerator.name == "kvm":
            self._booted_instead("clones are not tested with KVM")
            return None
        if asked.plugin is not None:
            self._booted_instead("a plugin counts from the start of the guest")
            return None
        if asked.gdb:
            self._booted_instead("a clone does not go on after gdb has detached")
            return None
        artefact = self._saved_boot(asked)
        try:
            saved = artefact.obtain()
            self.cache.hold(saved.directory)
            with ExitStack() as own:
                machine = self._machine(asked, log_directory, saved=saved)
                guest, boot_s = self._connected(asked, machine, own)
                guest.wake(f"guest-{machine.pid}")
                stack.push(own.pop_all())
                return machine, guest, boot_s
        except (_NotSavedError, MachineFailure, GuestLost, CommandFailed, QmpError) as error:
            self._booted_instead(str(error).partition("\n")[0])
            return None

    def _booted_instead(self, why: str) -> None:
        with self.events.step("clone") as step:
            step.note(f"the guest is booted instead: {why}")

    def _saved_boot(self, asked: _Asked) -> Artefact[SavedBoot]:
        """The saved boot of a guest, with everything that its state depends on as its key."""
        argv = qemu_argv(
            asked.kernel.bzimage,
            asked.image.initramfs,
            asked.topology,
            self.accelerator,
            asked.cmdline,
            Path("console.log"),
            Sockets(Path("sockets")),
            asked.gdb,
            shortcuts=self._shortcuts(asked.kernel),
            memory=NodeMemory(Path("memory"), True),
        )
        key = {
            "argv": argv,
            "kernel": asked.kernel.digest,
            "image": asked.image.digest,
            "qemu": [self.accelerator.qemu, self.accelerator.qemu_digest],
        }
        return Artefact(
            self.cache,
            SAVED_BOOT,
            lambda: key,
            lambda directory: self._save_boot(asked, directory),
            SavedBoot,
        )

    def _save_boot(self, asked: _Asked, directory: Path) -> None:
        """Boot a guest and save it.

        Raises:
            MachineFailure, GuestLost, CommandFailed, QmpError: the guest did not come up, or cannot be saved.
        """
        for _ in self.cache.collect(limit_bytes=SAVED_BOOTS_BYTES, kind=SAVED_BOOT):
            pass
        with (
            self.events.step("save a boot"),
            temporary_directory("boot") as logs,
            ExitStack() as stack,
        ):
            machine = self._machine(asked, logs, memory=directory)
            guest, _ = self._connected(asked, machine, stack)
            self._verify(guest, asked.kernel, asked.topology)
            guest.rest()
            guest.close()
            if machine.findings():
                title = machine.findings()[0].title
                raise _NotSavedError(f"the kernel reported a problem while it booted: {title}")
            machine.save(SavedBoot(directory))

    def abort(self) -> None:
        """End all guests at once, e.g. on Ctrl-C; threads that wait for one get GuestLost."""
        if self.keeper is not None:
            self.keeper.release()
        with self._lock:
            machines = list(self._machines)
        for machine in machines:
            machine.close()

    def _decoded(self, kernel: KernelBuild, findings: Sequence[Finding]) -> list[Finding]:
        """Reports with source lines, if the kernel has been built with debugging information, too."""
        decoder = self._decoders.get(kernel.digest)
        if not findings or decoder is None:
            return list(findings)
        try:
            return [replace(each, text=decoder.decoded(each.text)) for each in findings]
        except (UserError, InfrastructureError):
            return list(findings)

    def _forget(self, machine: Machine) -> None:
        with self._lock:
            self._machines.discard(machine)

    @staticmethod
    def _verify(guest: Guest, kernel: KernelBuild, topology: Topology) -> None:
        try:
            running = build_id_of_notes(guest.read_bytes("/sys/kernel/notes"))
            differences = verify(guest, topology)
        except UserError as error:  # the request is ours, not the user's
            raise MachineFailure(Outcome.BOOT_FAILED, str(error)) from error
        if not kernel.build_id:
            release = guest.read_text("/proc/sys/kernel/osrelease").strip()
            if release != kernel.release:
                raise MachineFailure(
                    Outcome.BOOT_FAILED, f"the guest runs {release}, and --kernel is {kernel.release}"
                )
        elif running != kernel.build_id and kernel.is_prebuilt:
            raise UserError(
                f"--vmlinux has the build ID {kernel.build_id}, and --kernel {running}: they are of different builds."
            )
        elif running != kernel.build_id:
            raise MachineFailure(
                Outcome.BOOT_FAILED, f"the guest runs kernel {running}, but {kernel.build_id} was built"
            )
        if differences:
            raise MachineFailure(
                Outcome.BOOT_FAILED,
                "the guest does not have the requested topology: " + "; ".join(differences),
            )

    def _set_knob(self, guest: Guest, key: str, value: str) -> None:
        path = knob_path(key, self.series)
        if is_named(key, self.series):
            try:
                self._write_knob(guest, key, path, value)
            except UserError as error:  # the value has been checked, so the kernel is at fault
                raise MachineFailure(Outcome.BOOT_FAILED, str(error)) from error
            return
        if key == SWAP:
            why = add_swap(guest, path, value, BOOT_TIMEOUT_S)
            if why is not None:
                raise UserError(
                    f"--swap {value}: {why}. The kernel needs CONFIG_SWAP and CONFIG_ZRAM, and the size must be valid."
                )
            return
        there = guest.run(["test", "-f", path], timeout_s=BOOT_TIMEOUT_S)
        if there.status != 0:
            raise UserError(f"--set {key}: the guest has no file {path}.")
        try:
            self._write_knob(guest, key, path, value)
        except UserError as error:
            raise UserError(f"--set {key}={value}: {error}") from error

    @staticmethod
    def _write_knob(guest: Guest, key: str, path: str, value: str) -> None:
        guest.write_text(path, value)
        text = guest.read_text(path)
        if not reads_back(value, text):
            raise UserError(f"knob {key} was set to {value} but reads {' '.join(text.split())[:80]}.")
