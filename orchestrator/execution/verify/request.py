# SPDX-License-Identifier: GPL-2.0-only
"""The request of ``orchestrate series verify``: stages of a series, and the checks to run on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.errors import UserError
from orchestrator.execution.bench import Bench
from orchestrator.execution.provenance import begin, topology_of, variant_record
from orchestrator.execution.verify.answer import CHECKS, OPTIONAL, in_order, is_check, option_off
from orchestrator.experiment.variant import Variant
from orchestrator.kernel.series import BASELINE, Series, Stage
from orchestrator.machine.topology import Topology
from orchestrator.spelling import hint
from orchestrator.store.manifest import (
    Manifest,
    PlannedCell,
    Role,
    RunKind,
    VerificationRecord,
    WorkloadRecord,
)

#: Check -> what it checks.
_TITLES: Final = {
    "applies": "The patch applies",
    "checkpatch": "checkpatch.pl finds nothing",
    "build": "The kernel builds without new warnings",
    "THP=n": "It builds without CONFIG_TRANSPARENT_HUGEPAGE",
    "NUMA=n": "It builds without CONFIG_NUMA",
    "MEMCG=n": "It builds without CONFIG_MEMCG",
    "sparse": "sparse finds nothing new",
    "boots": "A guest boots",
    "smoke": "The smoke workload passes",
    "names": "Knobs and counters are those of series.toml",
    "kernel-doc": "kernel-doc finds nothing new",
    "clang": "It compiles with clang without new warnings",
    "W=1": "It compiles with W=1 without new warnings",
}


def _title_of(check: str) -> str:
    option = option_off(check)
    by_default = f"It builds without {option}" if option else f"It compiles for {check} without new warnings"
    return _TITLES.get(check, by_default)


@dataclass(frozen=True)
class VerificationRequest:
    """The request for a verification.

    Args:
        stages: numbers of the stages, in order.
        checks: names of the checks, in the order in which they are made.
        topology: topology of the guests.
    """

    stages: tuple[int, ...]
    checks: tuple[str, ...]
    topology: Topology

    @classmethod
    def parse(
        cls,
        stages: Sequence[str],
        checks: Sequence[str],
        topology: str,
        series: Series,
        without: Sequence[str] = (),
        also: Sequence[str] = (),
    ) -> VerificationRequest:
        """The request of a command line.

        Args:
            stages: numbers or names of stages; empty for all.
            checks: names of checks; empty for all of :data:`CHECKS`.
            without: options to turn off instead of the usual ones, as ``KSM`` or ``CONFIG_KSM``, also several with
                commas.
            also: checks to add.

        Raises:
            UserError: unknown stage or check.
        """
        for flag, named in (("--only", checks), ("--also", also)):
            for check in named:
                if not is_check(check):
                    raise UserError(f"{flag} {check}: unknown check; {hint(check, (*CHECKS, *OPTIONAL))}")
        off = [name.strip().removeprefix("CONFIG_") for names in without for name in names.split(",")]
        for name in off:
            if not is_check(f"{name}=n"):
                raise UserError(
                    f"--without {name}: write the name of an option, as in --without KSM,SWAP,NUMA."
                )
        known = {name for stage in series.stages for name in (str(stage.number), stage.name)}
        for name in stages:
            if name not in known:
                there = ", ".join(f"{stage.number} ({stage.name})" for stage in series.stages)
                raise UserError(f"--stage {name}: unknown stage; the stages are {there}.")
        chosen = [
            stage.number
            for stage in series.stages
            if not stages or {str(stage.number), stage.name} & set(stages)
        ]
        usual = [check for check in CHECKS if not (off and option_off(check))]
        made = in_order([*(checks or usual), *(f"{name}=n" for name in off), *also])
        return cls(tuple(chosen), made, Topology.parse(topology))

    @classmethod
    def of_run(cls, path: Path, manifest: Manifest) -> VerificationRequest:
        """The verification request of a run directory.

        Raises:
            UserError: the run is not a verification.
        """
        asked = manifest.verification
        if asked is None:
            raise UserError(f"{path.name} is not a verification of a series.")
        return cls(asked.stages, asked.checks, topology_of(manifest.topology))

    def stages_of(self, series: Series) -> Sequence[Stage]:
        """The requested stages."""
        return [stage for stage in series.stages if stage.number in self.stages]

    def cell(self, stage: Stage, check: str) -> PlannedCell:
        """The cell of a check of a stage."""
        variant = f"stage-{stage.number}"
        return PlannedCell(
            cell=f"{variant}.{check}.1",
            variant=variant,
            role=Role.PATCHED,
            workload=check,
            repetition=1,
            seed=0,
        )

    def manifest(self, bench: Bench, command: Sequence[str]) -> Manifest:
        """The content of ``run.json`` before any slow work."""
        stages = self.stages_of(bench.series)
        variants = [
            Variant(BASELINE, Role.BASELINE, BASELINE),
            *(Variant(f"stage-{stage.number}", Role.PATCHED, f"stage-{stage.number}") for stage in stages),
        ]
        begun = begin(
            RunKind.VERIFY,
            f"verify-{bench.series.name}",
            bench,
            self.topology,
            command,
            variants=[variant_record(variant, bench) for variant in variants],
            workloads={check: WorkloadRecord(title=_title_of(check)) for check in self.checks},
            cells=[self.cell(stage, check) for stage in stages for check in self.checks],
        )
        return replace(begun, verification=VerificationRecord(stages=self.stages, checks=self.checks))
