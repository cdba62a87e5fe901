# SPDX-License-Identifier: GPL-2.0-only
"""Runs that never ran: invented figures of a plausible size, for tests of what reads a run.

Nothing here was measured. The manifest says so, and every figure follows from a seed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from records import manifest, planned

from orchestrator.store.manifest import (
    KernelRecord,
    Manifest,
    PlannedCell,
    Role,
    StageRecord,
    VariantRecord,
    WorkloadRecord,
)
from orchestrator.store.observation import Better, Metric, Observation, Phase, Sample
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import CellRow, Run, RunWriter

#: workload -> metric -> (unit, better, primary, invented value of the baseline, relative spread)
METRICS: Mapping[str, Mapping[str, tuple[str, Better, bool, float, float]]] = {
    "chunk": {
        "survivors.total": ("children", "higher", True, 15, 0.0),
        "survivors_oom.total": ("children", "higher", True, 15, 0.03),
        "memory_kib.max": ("KiB", "lower", True, 7_801_240, 0.0004),
        "promotions.total": ("ranges", "higher", True, 0, 0.0),
        "huge_faults.total": ("faults", None, False, 3840, 0.0),
        "reservations.total": ("blocks", None, False, math.nan, 0.0),
        "dumps.total": ("reservations", None, False, math.nan, 0.0),
        "oom_kills.total": ("kills", None, False, 0, 0.0),
    },
    "fault_latency": {
        "first_fault_insns.p50": ("insns", "lower", True, 5200, 0.0006),
        "fault_insns.p50": ("insns", "lower", True, 6290, 0.0006),
        "fault_insns.p99": ("insns", "lower", False, 15472, 0.0006),
        "memory_kib.max": ("KiB", "lower", True, 266_240, 0.001),
        "promotions.total": ("ranges", "higher", True, 24, 0.0),
    },
}
#: With `ranges`: as METRICS.
RANGE_METRICS: Mapping[str, tuple[str, Better, bool, float, float]] = {
    "region_1_insns.p50": ("insns", "lower", False, 285_500, 0.0006),
    "region_64_insns.p50": ("insns", "lower", False, 285_700, 0.0006),
    "region_512_insns.p50": ("insns", "lower", False, 288_900, 0.0006),
    "huge_regions.percent": ("%", "higher", True, 100, 0.0),
}
RANGE_EFFECTS: Mapping[str, float] = {
    "region_1_insns.p50": 0.028,
    "region_64_insns.p50": 0.61,
    "region_512_insns.p50": 4.72,
}
_HELP = {
    "survivors.total": "children alive when MemAvailable fell below a chunk",
    "survivors_oom.total": "children alive when the OOM killer came",
    "first_fault_insns.p50": "First touch of a region.",
    "fault_insns.p50": "Touch of a further page of a region; does not fault where a huge page is mapped.",
}
VARIANTS: Mapping[str, str] = {
    "baseline": "baseline",
    "baseline-control": "control",
    "core-only@1": "patched",
    "core-only@256": "patched",
}
#: variant -> workload -> metric -> factor (a str: the value itself)
EFFECTS: Mapping[str, Mapping[str, Mapping[str, float | str]]] = {
    "core-only@256": {
        "chunk": {
            "survivors.total": "107",
            "survivors_oom.total": "112",
            "memory_kib.max": 0.97,
            "huge_faults.total": "0",
            "reservations.total": "27392",
            "dumps.total": "3",
        },
        "fault_latency": {
            "first_fault_insns.p50": 1.9,
            "fault_insns.p50": 1.012,
            "fault_insns.p99": 0.98,
            "promotions.total": "96",
        },
    },
    "core-only@1": {"chunk": {"reservations.total": "0", "dumps.total": "0"}},
}


def _variant(name: str, role: Role) -> VariantRecord:
    patchset, _, threshold = name.partition("@")
    return VariantRecord(
        name=name,
        role=role,
        patchset=patchset.removesuffix("-control"),
        knobs={"promotion_threshold": threshold} if threshold else {},
        stages=tuple(
            StageRecord(number=n, name=f"stage-{n}", digest=f"{n:040x}")
            for n in (range(1, 10) if role is Role.PATCHED else ())
        ),
        tree=f"{zlib.crc32(role.encode()):040x}",
        kernel=KernelRecord(
            release="6.12.117-orchestrate",
            build_id=f"{zlib.crc32(name.encode()):040x}",
            digest="synthetic",
            compiler="gcc 12.2.0",
            configuration="synthetic-configuration",
        ),
    )


@dataclass(frozen=True)
class Synthetic:
    """What to invent.

    Args:
        failures: cell -> (outcome, evidence); the outcome LOST means that no end is recorded.
        effects: see EFFECTS.
        counters: cell -> counters that replace those of its last sample.
        samples, histograms: whether cells have them.
        ranges: whether fault_latency measures regions by density and follows how ranges become huge.
        changes: fields of the manifest that are replaced.
        zoneinfo: whether nodes' counters are sampled from a second file, too.
    """

    repeat: int = 5
    seed: int = 1
    variants: Mapping[str, str] = field(default_factory=lambda: dict(VARIANTS))
    workloads: Sequence[str] = ("chunk", "fault_latency")
    effects: Mapping[str, Mapping[str, Mapping[str, float | str]]] = field(default_factory=lambda: EFFECTS)
    failures: Mapping[str, tuple[Outcome, str]] = field(default_factory=dict)
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    samples: bool = True
    histograms: bool = True
    ranges: bool = False
    zoneinfo: bool = False
    spread: float = 1.0

    def write(self, results: Path, name: str = "synthetic") -> Run:
        writer = RunWriter.create(results, name, self.manifest())
        for entry in writer.manifest.cells:
            outcome, evidence = self.failures.get(entry.cell, (Outcome.OK, ""))
            if outcome is Outcome.LOST:
                continue
            row = CellRow(
                entry,
                outcome=outcome,
                evidence=evidence,
                boot_s=4.2,
                run_s=31.0,
                total_s=36.1,
                started_utc="2000-01-01T00:00:00+00:00",
            )
            ok = outcome is Outcome.OK
            writer.record(
                row,
                self._observations(entry) if ok else [],
                self._samples(entry) if ok and self.samples else [],
            )
            if ok and self.histograms:
                self._write_histograms(writer.cell_directory(entry.cell), entry)
            if ok and self.ranges:
                self._write_ranges(writer.cell_directory(entry.cell), entry)
        writer.finish()
        return Run.open(writer.path)

    def manifest(self) -> Manifest:
        made_up = manifest(
            command=("orchestrate", "run", "--patchset", "core-only", "--repeat", str(self.repeat)),
            repeat=self.repeat,
            seed=self.seed,
            variants=tuple(_variant(name, Role(role)) for name, role in self.variants.items()),
            workloads={
                name: WorkloadRecord(
                    title={"chunk": "The chunk test", "fault_latency": "Cost of anonymous faults"}[name],
                    parameters={"chunk_mib": "512"} if name == "chunk" else {"pages": "65536"},
                    metrics={
                        metric: Metric(metric, unit, better, primary, help=_HELP.get(metric, metric))
                        for metric, (unit, better, primary, _, _) in self._metrics(name).items()
                    },
                )
                for name in self.workloads
            },
            cells=tuple(
                planned(
                    variant,
                    workload,
                    repetition,
                    role=Role(role),
                    seed=zlib.crc32(f"{self.seed}/{workload}/{repetition}".encode()),
                )
                for repetition in range(1, self.repeat + 1)
                for workload in self.workloads
                for variant, role in self.variants.items()
            ),
        )
        made_up = replace(made_up, image=dict.fromkeys(made_up.workloads, "synthetic-image"))
        return replace(made_up, **self.changes)

    def _metrics(self, workload: str) -> Mapping[str, tuple[str, Better, bool, float, float]]:
        return {**METRICS[workload], **(RANGE_METRICS if self.ranges and workload == "fault_latency" else {})}

    def _draw(self, entry: PlannedCell, what: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.seed}/{entry.cell}/{what}".encode()))

    def _observations(self, entry: PlannedCell) -> list[Observation]:
        observations = []
        for metric, (unit, _, _, base, spread) in self._metrics(entry.workload).items():
            effect = self.effects.get(entry.variant, {}).get(entry.workload, {}).get(metric, 1.0)
            if entry.variant.endswith("@256"):
                effect = RANGE_EFFECTS.get(metric, effect)
            value = float(effect) if isinstance(effect, str) else base * effect
            if math.isnan(value):
                continue  # a counter that this kernel lacks
            noise = self._draw(entry, metric).standard_normal()
            observations.append(Observation(metric, unit, round(value * (1 + spread * self.spread * noise))))
        return observations

    def _samples(self, entry: PlannedCell) -> list[Sample]:
        """A machine of four nodes that fills up; reservations are held, then dumped when it is nearly full."""
        reserving = entry.variant.endswith("@256")
        chunk = entry.workload == "chunk"
        draw = self._draw(entry, "samples")
        total = 2 * 2**20  # KiB a node
        steps = 15 if chunk else 4
        samples: list[Sample] = []

        def sample(
            at: float,
            phase: Phase,
            used: Sequence[float],
            reserved: Sequence[float],
            events: Mapping[str, int],
        ) -> None:
            def add(source: str, node: int | None, counter: str, value: float) -> None:
                samples.append(
                    Sample(round(at, 3), round(at * 3, 3), phase, source, node, counter, int(value))
                )

            for node in range(4):
                add("meminfo", node, "MemTotal", total)
                add("meminfo", node, "MemFree", total * (1 - used[node] - reserved[node]))
                if reserving:
                    for source in ("zoneinfo", "vmstat") if self.zoneinfo else ("vmstat",):
                        add(source, node, "nr_thp_reserved", total * reserved[node] / 4)
            free = sum(total * (1 - u - r) for u, r in zip(used, reserved, strict=True))
            held = sum(total * r for r in reserved)
            add("meminfo", None, "MemTotal", 4 * total)
            add("meminfo", None, "MemFree", free)
            add("meminfo", None, "MemAvailable", free + held - 60_000)
            add("vmstat", None, "pgfault", 20_000 + at * 40_000)
            for counter, value in events.items():
                add("vmstat", None, counter, value)

        huge = {"thp_fault_alloc": 3840, "thp_collapse_alloc": 0, "thp_split_pmd": 12}
        quiet = dict.fromkeys(huge, 0)
        own = ("thp_res_alloc", "thp_res_alloc_failed", "thp_res_mapped", "thp_res_released", "thp_res_filled",
               "thp_res_collapse", "thp_res_copy", "thp_res_dump", "nr_thp_reserved")  # fmt: skip
        patched = entry.role == "patched"
        before = quiet | (dict.fromkeys(own, 0) if patched else {})
        sample(10.0, "before", [0.02] * 4, [0.0] * 4, before)
        pace = 4.0 if reserving else 1.0
        for step in range(1, steps + 1):
            at = 10 + step * pace * 0.5
            fill = step / steps * (0.93 if chunk else 0.3)
            used, reserved = [], []
            for node in range(4):
                mine = max(0.0, min(0.97, fill + 0.02 * draw.standard_normal() + 0.01 * node))
                if reserving:
                    dumped = step > steps * 0.8
                    mapped = mine * 0.25 if not dumped else mine * 0.9
                    used.append(mapped)
                    reserved.append(0.02 if dumped else mine - mapped)
                else:
                    used.append(mine)
                    reserved.append(0.0)
            sample(at, "during", used, reserved, {})
        if patched:
            alloc = 27392 if reserving else 0
            mapped, filled = alloc * 130, (96 * 512 // 2 if reserving else 0)
            after: dict[str, int] = {
                **(quiet if reserving else huge),
                **dict.fromkeys(own, 0),
                "thp_res_alloc": alloc,
                "thp_res_mapped": mapped,
                "thp_res_filled": filled,
                "thp_res_released": 512 * alloc - mapped - filled,
                "thp_res_collapse": 96 if reserving else 0,
                "thp_res_dump": 3 if reserving else 0,
            }
        else:
            after = dict(huge)
        after |= self.counters.get(entry.cell, {})
        sample(10 + (steps + 1) * pace * 0.5, "after", [0.02] * 4, [0.0] * 4, after)
        return samples

    def _write_ranges(self, directory: Path, entry: PlannedCell) -> None:
        """Huge at the fault, or all of them in place when everything has been touched."""
        if entry.workload != "fault_latency":
            return
        reserving = entry.variant.endswith("@256")
        way, start, step = ("in_place", 88e6, 0.5e6) if reserving else ("at_fault", 0.0, 0.29e6)
        factor = 1 + 0.01 * self._draw(entry, "ranges").standard_normal()
        lines = [
            {"event": "huge_ranges", "monotonic_ns": 10**10 + huge, "ranges": 64, "huge": huge}
            | {"at_fault": 0, "in_place": 0, "by_copy": 0, way: huge}
            | {"insns": round(huge and (start + step * huge) * factor)}
            for huge in range(0, 65, 4)
        ]
        with (directory / "workload.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _write_histograms(self, directory: Path, entry: PlannedCell) -> None:
        if entry.workload != "fault_latency":
            return
        draw = self._draw(entry, "histogram")
        reserving = entry.variant.endswith("@256")
        lines: list[dict[str, Any]] = [{"metric": "fault_insns.p50", "unit": "insns", "value": 6290}]
        for name, centre, count in (
            ("first_fault_insns", 9800 if reserving else 5200, 512),
            ("fault_insns", 5650 if reserving else 6200, 65024),
        ):
            drawn = centre * np.exp(0.07 * draw.standard_normal(count))
            tail = draw.random(count) < 0.02
            drawn[tail] *= 2.4
            edges = np.exp2(np.arange(44, 66) / 4)  # four buckets an octave
            counts, _ = np.histogram(drawn, edges)
            buckets = [
                [float(f"{low:.6g}"), float(f"{high:.6g}"), int(number)]
                for low, high, number in zip(edges[:-1], edges[1:], counts, strict=True)
                if number
            ]
            lines.append({"histogram": name, "unit": "insns", "buckets": buckets})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "workload.jsonl").write_text(text, encoding="utf-8")
