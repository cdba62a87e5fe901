# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate debug``: gdb on a guest that it boots, on a running cell or on a dump of a guest's memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import option
from orchestrator.cli.terminal import Terminal, terminal_of
from orchestrator.errors import UserError
from orchestrator.temporary import temporary_directory

if TYPE_CHECKING:
    from orchestrator.cli.guest_of import GuestRequest, Up
    from orchestrator.debugger.batch import Batch, Event
    from orchestrator.debugger.gdb import Gdb
    from orchestrator.execution.bench import Bench
    from orchestrator.guest.ssh import Guest
    from orchestrator.store.run import Run

NAME = "debug"
EXAMPLE = (
    "Example: orchestrate debug -p core-only --break thp_resv_alloc --until 'haddr > 0' --exec 'ls /' --json"
)
#: Options that have no effect on a guest that is not booted here.
_OF_BOOT = ("kernel", "qemu", "topology", "accel", "settings", "cmdline", "logs", "program")
#: Host seconds to write the memory of a guest to a file.
_DUMP_S = 300.0


def command(
    context: typer.Context,
    patchset: option.GuestPatchset = None,
    kernel: option.Kernel = None,
    vmlinux: option.Vmlinux = None,
    topology: option.Topology = "2x1G",
    accel: option.Accelerator = "tcg",
    qemu: option.Qemu = None,
    settings: option.Settings = None,
    cmdline: option.Cmdline = None,
    flavour: option.Flavour = "measure",
    source: option.Source = None,
    series: option.SeriesDirectory = None,
    build_jobs: option.BuildJobs = None,
    logs: option.Logs = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="Attach to a guest of this run, which stops it meanwhile."),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option("--cell", metavar="CELL", help="The cell of --run. Default: the only one that runs."),
    ] = None,
    core: Annotated[
        Path | None,
        typer.Option("--core", metavar="FILE", help="Open a dump of a guest's memory (see --dump)."),
    ] = None,
    breakpoints: Annotated[
        list[str] | None,
        typer.Option("--break", "-b", metavar="SYMBOL", help="Set a breakpoint at this symbol; repeatable."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="EXPR",
            help="Run the guest until this C expression is not 0: at a --break, else a watched global variable.",
        ),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option("--exec", metavar="COMMAND", help="Run this shell command in the guest while it runs."),
    ] = None,
    commands: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            "-x",
            metavar="COMMAND",
            help="Run this gdb command, print its output and continue; repeatable.",
        ),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(
            "--script", metavar="FILE", help="Run this script: gdb commands (.gdb), or Python for gdb (.py)."
        ),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump", metavar="FILE", help="At the end, write the guest's memory to this file, for --core."
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", help="Limit of each wait and command, in host seconds.", min=0.1
        ),
    ] = 60,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per stop, command and script.")
    ] = False,
) -> int:
    """Attach gdb to a guest with debugging information, interactively or in batch.

    With --until, --exec, --command, --script, --dump or --json no person is needed. First the guest runs (--until,
    --exec) until it stops, then commands and the script are run. The kernel's own gdb commands (lx-ps, lx-dmesg) are
    loaded. Exit status 3: the guest did not stop within --timeout.
    """
    from orchestrator.cli.guest_of import GuestRequest
    from orchestrator.debugger.batch import Batch

    is_booted = patchset is not None or kernel is not None
    if (is_booted and run is not None) or not (is_booted or run is not None or core is not None):
        raise UserError(
            "name a guest: --patchset NAME to boot one, --run RUN for a running one, or --core FILE."
        )
    if run is None and cell is not None:
        raise UserError("--cell names a cell of --run; name the run as well.")
    if core is not None and run is not None:
        raise UserError("--core needs no --run; name the kernel that wrote it with --patchset or --vmlinux.")
    if core is not None or run is not None:
        option.refuse(context, _OF_BOOT, "no guest is booted")
    if core is not None:
        option.refuse(context, ("breakpoints", "until", "dump"), "a dump does not run")
    if dump is not None and (dump.exists() or not dump.absolute().parent.is_dir()):
        raise UserError(f"--dump {dump}: name a new file in a directory that exists.")
    batch = Batch(breakpoints or (), until or "", program is not None, commands or (), script, timeout)
    is_batch = bool(until or program or commands or script or dump or as_json)
    session = _Session(terminal_of(context), batch, is_batch, as_json, program, dump)
    if core is not None:
        return session.of_core(
            core, Path(vmlinux) if vmlinux else None, patchset, flavour, source, series, build_jobs
        )
    if run is not None:
        return session.of_cell(run, cell)
    return session.of_boot(
        GuestRequest(
            patchset, topology, accel, settings, cmdline, flavour, source, series, build_jobs, logs,
            kernel=kernel, vmlinux=vmlinux, gdb=True, dwarf=True, breakpoints=breakpoints or (),
        )
    )  # fmt: skip


class _Session:
    """What to do with gdb, wherever it is attached."""

    def __init__(
        self,
        terminal: Terminal,
        batch: Batch,
        is_batch: bool,
        as_json: bool,
        program: str | None,
        dump: Path | None,
    ) -> None:
        self.terminal = terminal
        self.batch = batch
        self.is_batch = is_batch
        self.as_json = as_json
        self.program = program
        self.dump = dump

    def of_boot(self, request: GuestRequest) -> int:
        """Boot a variant, and attach gdb."""
        from orchestrator.cli.guest_of import guest_of

        return guest_of(self.terminal, request, lambda up: self._booted(up, request.patchset))

    def _booted(self, up: Up, patchset: str | None) -> int:
        from orchestrator.debugger.gdb import Gdb, check_build, interactive_gdb
        from orchestrator.guest.ssh import ssh_command

        machine = up.booted.machine
        assert machine.gdb_socket is not None
        notes = up.booted.guest.read_bytes("/sys/kernel/notes")
        shell = " ".join(ssh_command(machine.ssh_port, up.image))
        if not self.as_json:
            self.terminal.print(f"shell    {shell}")
        with _scripts(up.bench, up.kernel.vmlinux, patchset) as loader:
            if not self.is_batch:
                check_build(up.kernel.vmlinux, notes)
                return interactive_gdb(
                    up.kernel.vmlinux, f"remote {machine.gdb_socket}", self.batch.breakpoints, loader
                )
            transcript = machine.log_dir / "gdb.log"
            with Gdb.attach(machine.gdb_socket, up.kernel.vmlinux, notes, transcript) as gdb:
                machine.on_failure(lambda failure: gdb.stop_waiting())
                programs: list[_Program] = []
                status = self._run(gdb, loader, lambda: programs.append(self._started(up)))
                if self.dump is not None:
                    arguments = {"paging": True, "protocol": f"file:{self.dump.absolute()}"}
                    machine.qmp.execute("dump-guest-memory", arguments, _DUMP_S)
            for program in programs:
                self._say(program.end(self.batch.timeout_s))
            return status

    def of_cell(self, run: str, cell: str | None) -> int:
        """Attach gdb to a cell of a run that another process runs."""
        from orchestrator.debugger.gdb import Gdb, interactive_gdb
        from orchestrator.debugger.live import LiveMachine
        from orchestrator.store.run import Run, find_run

        opened = Run.open(find_run(self.terminal.project.results, run))
        name = cell or _only_live_cell(opened)
        patchset = _patchset_of_cell(opened, name)
        machine = LiveMachine.of_directory(opened.path / "logs" / name)
        with self.terminal.events() as events:
            kernel = _bench_of(self.terminal, events, opened).kernel(patchset)
        socket = machine.serve_gdb()
        if not self.is_batch:
            with Gdb.attach(socket, kernel.vmlinux) as gdb:
                gdb.check_kernel(kernel.vmlinux)
            return interactive_gdb(kernel.vmlinux, f"remote {socket}", self.batch.breakpoints)
        with Gdb.attach(socket, kernel.vmlinux) as gdb:
            gdb.check_kernel(kernel.vmlinux)
            status = self._run(gdb, None)
            if self.dump is not None:
                machine.ask(f"dump-guest-memory -p {self.dump.absolute()}", _DUMP_S)
            return status

    def of_core(
        self,
        core: Path,
        vmlinux: Path | None,
        patchset: str | None,
        flavour: str,
        source: str | None,
        series: Path | None,
        build_jobs: int | None,
    ) -> int:
        """Open a dump."""
        from orchestrator.debugger.gdb import Gdb, interactive_gdb

        if (vmlinux is None) == (patchset is None):
            raise UserError("--core: name the kernel that wrote it, with --patchset NAME or --vmlinux FILE.")
        with ExitStack() as stack:
            loader = None
            if vmlinux is None:
                assert patchset is not None
                with self.terminal.events() as events:
                    bench = self.terminal.bench(events, source, "tcg", flavour, build_jobs, series)
                    vmlinux = bench.kernel(patchset, dwarf=True).vmlinux
                    loader = stack.enter_context(_scripts(bench, vmlinux, patchset))
            with Gdb.open_core(core, vmlinux) as gdb:
                if self.is_batch:
                    return self._run(gdb, loader)
            return interactive_gdb(vmlinux, f"core {core}", (), loader)

    def _run(self, gdb: Gdb, loader: Path | None, started: Callable[[], object] = lambda: None) -> int:
        from orchestrator.debugger.batch import run_batch

        if loader is not None:
            gdb.command(f"source {loader}")
        return 0 if run_batch(gdb, self.batch, self._say, started) else 3

    def _say(self, event: Event) -> None:
        from orchestrator.debugger.batch import text_of

        self.terminal.print(json.dumps(event) if self.as_json else text_of(event))

    def _started(self, up: Up) -> _Program:
        return _Program(up.booted.guest, self.program or "true", self.batch.timeout_s)


class _Program:
    """A shell command in the guest, on a thread: a guest that stops answers nobody.

    Args:
        timeout_s: limit in host seconds, in which the guest may stop.
    """

    def __init__(self, guest: Guest, command: str, timeout_s: float) -> None:
        self._command = command
        self._ended: dict[str, object] = {"end": "it had not ended when the session did"}

        def run() -> None:
            from orchestrator.guest.ssh import CommandTimeout, GuestLost

            try:
                done = guest.run(["sh", "-c", command], timeout_s=2 * timeout_s)
                self._ended = {"end": done.end, "status": done.status, "output": done.stdout + done.stderr}
            except (CommandTimeout, GuestLost) as error:
                self._ended = {"end": str(error)}

        self._thread = threading.Thread(target=run, name="program", daemon=True)
        self._thread.start()

    def end(self, timeout_s: float) -> Event:
        """How it ended, after at most `timeout_s` host seconds."""
        self._thread.join(timeout_s)
        return {"event": "program", "command": self._command, **self._ended}


@contextmanager
def _scripts(bench: Bench, vmlinux: Path, patchset: str | None) -> Iterator[Path | None]:
    """The script that loads the kernel's own gdb commands; None without debugging information or source."""
    from orchestrator.debugger.kernel_scripts import write_kernel_scripts
    from orchestrator.kernel.elf import has_dwarf

    if patchset is None or not has_dwarf(vmlinux):
        yield None
        return
    tree = bench.tree(patchset)
    with temporary_directory("gdb") as directory:
        yield write_kernel_scripts(tree.repository, tree.tree, directory)


def _only_live_cell(run: Run) -> str:
    from orchestrator.debugger.live import LiveMachine

    alive = []
    for each in sorted(path.parent for path in (run.path / "logs").glob("*/machine.json")):
        try:
            LiveMachine.of_directory(each)
        except UserError:
            continue
        alive.append(each.name)
    if len(alive) != 1:
        which = f"several cells run; name one with --cell: {', '.join(alive)}" if alive else "no cell runs"
        raise UserError(f"--run {run.name}: {which}.")
    return alive[0]


def _patchset_of_cell(run: Run, cell: str) -> str:
    planned = {each.cell: each for each in run.manifest.cells}
    if cell not in planned:
        raise UserError(
            f"--cell {cell}: {run.name} has no such cell; {next(iter(planned), 'it has none')} is one."
        )
    return next(each.patchset for each in run.manifest.variants if each.name == planned[cell].variant)


def _bench_of(terminal: Terminal, events: object, run: Run) -> Bench:
    """A bench with the settings of a run, which its own command has open."""
    from orchestrator.events import Events
    from orchestrator.execution import driver
    from orchestrator.execution.provenance import other_kernel, requested_source

    assert isinstance(events, Events)
    manifest = run.manifest
    series, directory = driver.series_of(manifest, terminal.project.kernel_patches)
    others = {each.patchset: other for each in manifest.variants if (other := other_kernel(each)) is not None}
    source = requested_source(manifest, series)
    return terminal.bench(
        events, source, manifest.accelerator.name, manifest.flavour, None, directory, others
    )
