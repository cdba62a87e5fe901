# SPDX-License-Identifier: GPL-2.0-only
"""Calibration: the same page faults, timed on this host's processor and counted in instructions in a guest."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.analysis.calibration import DEFAULT_ROUNDS, DENSITIES, Calibration, Costs, Spread
from orchestrator.cache import Cache, seal
from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.execution.bench import Bench
from orchestrator.execution.ending import GuestEnded
from orchestrator.execution.processor import processor_model
from orchestrator.guest.image import compile_workload
from orchestrator.guest.workload import (
    check_parameters,
    observations_of,
    parse_output,
    run_workload,
)
from orchestrator.kernel.series import BASELINE
from orchestrator.machine.topology import Topology
from orchestrator.process import run
from orchestrator.temporary import temporary_directory

WORKLOAD = "fault_latency"
#: Timeout of the native program in host seconds; it takes one second.
_NATIVE_TIMEOUT_S = 120.0
_GUEST_TIMEOUT_S = 600.0
#: One node: with several, the cost of a fault depends on the node of the page.
_TOPOLOGY = "1x1G"
#: Regions per density, and regions for the main part of the workload, which only checks for huge pages.
_PARAMETERS = {"sweep_regions": "16", "regions": "4", "pages_per_region": "16", "dense_regions": "0"}
_NEEDED_MIB = 512
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_KIND = "calibration"


def last_calibration(cache: Cache) -> Calibration | None:
    """The last calibration since the host was booted; None if there is none."""
    try:
        return Calibration.of_json(_answer(cache).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def calibrate(bench: Bench, rounds: int = DEFAULT_ROUNDS, again: bool = False) -> tuple[Calibration, Path]:
    """Calibrate, or return the stored calibration since the host was booted.

    Args:
        bench: a bench with the accelerator ``icount``.
        rounds: number of native rounds to evaluate, at least 1.
        again: measure again even if there is a stored calibration.

    Returns:
        The calibration, and the directory where it is stored.

    Raises:
        InfrastructureError: this host has no huge pages, or the guest failed.
    """
    cache, accelerator = bench.cache, bench.accelerator
    kept = last_calibration(cache)
    if kept is not None and not again and (kept.guest_cpu, kept.qemu) == (accelerator.cpu, accelerator.qemu):
        return kept, _answer(cache).parent
    _check_host()
    guest = _in_guest(bench)
    with bench.events.step("time faults on this host's processor") as step:
        before = os.getloadavg()[0]
        processor = _native(bench, rounds, step)
        load = (round(before, 2), round(os.getloadavg()[0], 2))
    calibration = Calibration(
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=processor_model(),
        load=load,
        rounds=rounds,
        processor=processor,
        guest=guest,
        guest_cpu=accelerator.cpu,
        qemu=accelerator.qemu,
        kernel=bench.source_tree.version,
        host_kernel=platform.release(),
    )
    return calibration, _keep(cache, calibration)


def _check_host() -> None:
    if platform.machine() != "x86_64":
        raise InfrastructureError(
            f"this host is {platform.machine()} and the guest x86_64, so the processor of this host cannot be "
            "compared with that of the guest."
        )
    try:
        enabled = _THP.read_text(encoding="ascii")
    except FileNotFoundError:
        raise InfrastructureError(
            f"this host's kernel has no transparent huge pages ({_THP} is missing), so calibration is not possible."
        ) from None
    if "[never]" in enabled:
        raise InfrastructureError(
            f"transparent huge pages are disabled on this host; `echo madvise > {_THP}` as root, then try again."
        )
    import psutil  # imported here, so that --help is fast

    free = psutil.virtual_memory().available >> 20
    if free < _NEEDED_MIB:
        raise InfrastructureError(
            f"this host has {free} MiB of memory available; calibration needs {_NEEDED_MIB} MiB."
        )


def _native(bench: Bench, rounds: int, step: Step) -> Costs:
    """Run the workload with base pages and huge pages in turn, and compute medians over the rounds."""
    workload = bench.workloads[WORKLOAD]
    values = {name: parameter.default for name, parameter in workload.parameters.items()}
    values |= check_parameters(bench.workloads, WORKLOAD, _PARAMETERS)
    with temporary_directory("calibrate") as directory:
        program = Path(directory) / WORKLOAD
        compile_workload(bench.project.guest_workloads, WORKLOAD, program)

        def measure(advice: str, seed: int) -> dict[str, float]:
            argv = [str(program), "--seed", str(seed), "--clock", "ns"]
            for name, value in (values | {"advice": advice}).items():
                argv += [f"--{name}", value]
            done = run(argv, timeout_s=_NATIVE_TIMEOUT_S, check=False)
            records, fault = parse_output(done.stdout)
            if fault is None and (records[-1].get("end") != "ok" or done.returncode != 0):
                fault = str(records[-1].get("reason", f"it ended with status {done.returncode}"))
            if fault is not None:
                raise InfrastructureError(f"{WORKLOAD} on this host: {fault}.")
            return {o.metric: o.value for o in observations_of(records, workload, "ns")}

        found: list[Costs] = []
        # One extra round first: in a virtual machine, the host allocates memory at the first touch.
        for number in range(rounds + 1):
            step.progress(number, rounds + 1, "rounds")
            found.append(_both("ns", lambda advice, seed=number: measure(advice, seed)))  # type: ignore[misc]
    return _median(found[1:])


def _in_guest(bench: Bench) -> Costs:
    kernel = bench.kernel(BASELINE)
    workload = bench.workloads[WORKLOAD]
    with temporary_directory("logs") as directory:
        logs = Path(directory)
        try:
            with (
                bench.events.step("count instructions in a guest"),
                bench.boot(kernel, Topology.parse(_TOPOLOGY), log_directory=logs) as booted,
            ):
                measured = {}
                for advice in ("nohugepage", "hugepage"):
                    parameters = {**_PARAMETERS, "advice": advice}
                    done = run_workload(
                        booted.guest, workload, parameters, 0, "insns", logs, _GUEST_TIMEOUT_S
                    )
                    measured[advice] = {o.metric: o.value for o in done.observations}
        except GuestEnded as error:
            raise InfrastructureError(f"the guest for the calibration failed: {error}") from error
    return _both("insns", measured.__getitem__)


def _both(unit: str, measure: Callable[[str], Mapping[str, float]]) -> Costs:
    """Measure with base pages, then with huge pages.

    Raises:
        InfrastructureError: huge pages were requested but not available.
    """
    base, huge = measure("nohugepage"), measure("hugepage")
    expected = int(_PARAMETERS["regions"]) * 2048
    if huge["anon_huge_kib.max"] < expected:
        where = "this host" if unit == "ns" else "the guest"
        raise InfrastructureError(
            f"{where} mapped only {huge['anon_huge_kib.max']:.0f} of {expected} KiB with huge pages: "
            f"memory is fragmented, or {_THP.parent}/hugepages-2048kB/enabled says never."
        )

    def costs(of: Mapping[str, float]) -> dict[int, Spread]:
        # For instructions there is only a median.
        medians = {pages: of[f"region_{pages}_{unit}.p50"] for pages in DENSITIES}
        return {
            pages: Spread(of.get(f"region_{pages}_{unit}.p10", p50), p50) for pages, p50 in medians.items()
        }

    return Costs(unit, costs(base), costs(huge))


def _median(found: list[Costs]) -> Costs:
    def middle(spreads: Iterable[Spread]) -> Spread:
        each = list(spreads)
        return Spread(statistics.median(s.p10 for s in each), statistics.median(s.p50 for s in each))

    return Costs(
        found[0].unit,
        {pages: middle(costs.base[pages] for costs in found) for pages in DENSITIES},
        {pages: middle(costs.huge[pages] for costs in found) for pages in DENSITIES},
    )


def _key() -> dict[str, str]:
    return {"boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()}


def _answer(cache: Cache) -> Path:
    return cache.path(_KIND, _key()) / "answer.json"


def _keep(cache: Cache, calibration: Calibration) -> Path:
    text = calibration.to_json() + "\n"

    def make(directory: Path) -> None:
        (directory / "answer.json").write_text(text, encoding="utf-8")

    directory = cache.obtain(_KIND, _key(), make)
    temporary = directory / f".answer.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(directory / "answer.json")
    seal(directory)
    return directory
