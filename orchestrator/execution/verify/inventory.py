# SPDX-License-Identifier: GPL-2.0-only
"""Inventory of a guest: whether it boots, its counters and knobs, and a smoke test of memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.bench import Bench, Booted
from orchestrator.execution.ending import GuestEnded
from orchestrator.guest.ssh import Guest
from orchestrator.guest.workload import WorkloadFailed, run_workload
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.series import Knob
from orchestrator.machine.topology import Topology

#: The smoke test: writes memory, checks its contents before and after a fork, and takes seconds.
SMOKE = "touch"
_SEED = 1
_VMSTAT = "/proc/vmstat"


@dataclass(frozen=True)
class KnobFacts:
    """The behaviour of a knob.

    Args:
        value: its value after boot.
        faults: deviations from its description, as sentences.
    """

    value: str
    faults: tuple[str, ...] = ()


@dataclass
class Inventory:
    """What a guest has.

    Args:
        boot: why it did not come up; empty if it did.
        smoke: faults of the smoke workload, as sentences; empty if it passed, None if it did not run.
        counters: names in /proc/vmstat.
        files: paths of the files in the directories of knobs.
        knobs: name -> behaviour, for knobs that exist.
    """

    boot: str = "not booted"
    smoke: list[str] | None = None
    counters: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    knobs: dict[str, KnobFacts] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether it booted and passed."""
        return not self.boot and self.smoke == []

    def to_json(self) -> str:
        """As text for a file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def of_json(cls, text: str) -> Inventory:
        """Read what :meth:`to_json` wrote."""
        facts = json.loads(text)
        knobs = {
            name: KnobFacts(knob["value"], tuple(knob["faults"])) for name, knob in facts.pop("knobs").items()
        }
        return cls(**facts, knobs=knobs)


def take_inventory(
    bench: Bench, kernel: KernelBuild, topology: Topology, knobs: Sequence[Knob], log_directory: Path
) -> Inventory:
    """Boot a kernel, record its counters and knobs, and run the smoke workload.

    The workload runs with all knobs at their defaults, and with each knob in the middle of its range, since with the
    default of most stages reservations are off.

    Args:
        knobs: knobs of all stages; some may not exist in this kernel.

    Raises:
        InfrastructureError: the host failed, or the guest was lost for reasons other than its kernel.
    """
    inventory = Inventory()
    log_directory.mkdir(parents=True, exist_ok=True)
    try:
        with bench.boot(kernel, topology, log_directory=log_directory) as booted:
            inventory.boot = ""
            booted.machine.end_after_oops()
            _look(inventory, booted.guest, knobs)
            inventory.smoke = []
            _smoke(inventory, bench, booted, knobs, log_directory)
            ending = booted.ending()
    except GuestEnded as error:
        ending = error.ending
    if ending.is_lost:
        raise InfrastructureError(
            f"the guest was lost, for reasons other than its kernel: {ending.evidence}",
            log_directory / "console.log",
        )
    if inventory.boot:
        inventory.boot = "\n".join(ending.reports)
    elif not ending.is_ok:
        inventory.smoke = [*(inventory.smoke or []), *ending.reports]
    return inventory


def _look(inventory: Inventory, guest: Guest, knobs: Sequence[Knob]) -> None:
    inventory.counters = [line.split()[0] for line in guest.read_text(_VMSTAT).splitlines() if line.strip()]
    for directory in sorted({str(PurePosixPath(knob.path).parent) for knob in knobs}):
        names = guest.run(["ls", "-1", directory]).stdout.split()
        inventory.files += [f"{directory}/{name}" for name in names]
    for knob in knobs:
        if knob.path in inventory.files:
            value = guest.read_text(knob.path).strip()
            inventory.knobs[knob.name] = KnobFacts(value, tuple(_try(guest, knob)))
            guest.write_text(knob.path, value)


def _try(guest: Guest, knob: Knob) -> list[str]:
    """Write values that it must accept and values that it must reject."""
    faults = []
    for value, is_valid in (
        (knob.minimum - 1, False),
        (knob.minimum, True),
        (knob.maximum, True),
        (knob.maximum + 1, False),
    ):
        try:
            guest.write_text(knob.path, str(value))
        except UserError:
            if is_valid:
                faults.append(f"{knob.name} refuses {value}")
            continue
        if not is_valid:
            faults.append(f"{knob.name} takes {value}")
        elif guest.read_text(knob.path).strip() != str(value):
            faults.append(f"{knob.name} is set to {value} and reads {guest.read_text(knob.path).strip()}")
    return faults


def _smoke(
    inventory: Inventory, bench: Bench, booted: Booted, knobs: Sequence[Knob], log_directory: Path
) -> None:
    assert inventory.smoke is not None
    workload = bench.workloads[SMOKE]
    settings: list[Mapping[str, str]] = [{}]
    there = {
        knob.path: str((knob.minimum + knob.maximum) // 2) for knob in knobs if knob.name in inventory.knobs
    }
    if there:
        settings.append(there)
    for number, setting in enumerate(settings, 1):
        for path, value in setting.items():
            booted.guest.write_text(path, value)
        place = log_directory / f"smoke-{number}"
        place.mkdir(exist_ok=True)
        try:
            run_workload(
                booted.guest,
                workload,
                workload.quick,
                _SEED,
                bench.accelerator.clock,
                place,
                workload.timeout_s,
            )
        except WorkloadFailed as error:
            how = "".join(f" with {PurePosixPath(path).name} {value}" for path, value in setting.items())
            inventory.smoke.append(f"{error}{how}")
