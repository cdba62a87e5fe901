# SPDX-License-Identifier: GPL-2.0-only
"""Where the instructions went: instructions per kernel function, a variant against the baseline.

Boots are compared in pairs that share a seed, like metrics. A function has grown if it has in every pair, and by more
than the control, which is the baseline measured again, ever differs from the baseline.

The functions are those that processes execute. Kernel threads are shown as a whole: how often most of them wake up
depends on how long a guest waits for its host.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from orchestrator.analysis.notation import percent
from orchestrator.store.manifest import Role
from orchestrator.store.profile import FILE, USER, Chain, Profile, read_profile
from orchestrator.store.run import Run

#: Functions shown that grew, and that shrank.
SHOWN = 10
_THREADS = 5
#: Share of all instructions of processes below which a change is not shown.
_SMALLEST = 0.0001
_NAME_WIDTH = 30


@dataclass(frozen=True)
class FunctionRow:
    """One function in two variants: medians over boots, in guest instructions.

    Args:
        baseline, compared: in the function itself.
        change: median of the differences of the pairs.
        low, high: smallest and largest difference of a pair.
        callees: change with all that it calls, median of the pairs.
        floor: largest difference between baseline and control; 0 without a control.
    """

    function: str
    baseline: float
    compared: float
    change: float
    low: float
    high: float
    callees: float
    floor: float = 0.0

    @property
    def has_grown(self) -> bool:
        """Whether it grew in all pairs, and by more than the noise floor."""
        return self.low > 0 and self.change > self.floor

    @property
    def has_shrunk(self) -> bool:
        """Whether it shrank in all pairs, and by more than the noise floor."""
        return self.high < 0 and -self.change > self.floor


@dataclass(frozen=True)
class ProfileComparison:
    """A variant against the baseline in one workload.

    Args:
        pairs: number of pairs of boots.
        total: all instructions of processes; `function` is empty.
        user: instructions of user space.
        threads: kernel threads, the largest change first.
        rows: all functions, the largest growth first.
    """

    workload: str
    variant: str
    baseline: str
    pairs: int
    total: FunctionRow
    user: FunctionRow
    threads: tuple[FunctionRow, ...]
    rows: tuple[FunctionRow, ...]

    @property
    def grown(self) -> list[FunctionRow]:
        """The functions that grew most."""
        return [row for row in self.rows if row.has_grown and self._is_large(row)][:SHOWN]

    @property
    def shrunk(self) -> list[FunctionRow]:
        """The functions that shrank most."""
        return [row for row in reversed(self.rows) if row.has_shrunk and self._is_large(row)][:SHOWN]

    def _is_large(self, row: FunctionRow) -> bool:
        return abs(row.change) >= _SMALLEST * self.total.baseline

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "workload": self.workload,
            "variant": self.variant,
            "baseline": self.baseline,
            "pairs": self.pairs,
            "total": asdict(self.total),
            "user": asdict(self.user),
            "threads": [asdict(row) for row in self.threads],
            "functions": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Profiles:
    """The profiles of a run.

    Args:
        by_cell: (workload, variant) -> repetition -> profile, of cells that ended ok.
    """

    by_cell: Mapping[tuple[str, str], Mapping[int, Profile]]

    def pairs(self, workload: str, variant: str, baseline: str) -> list[tuple[Profile, Profile]]:
        """The profiles of the baseline and of a variant, by repetition."""
        first = self.by_cell.get((workload, baseline), {})
        second = self.by_cell.get((workload, variant), {})
        return [(first[each], second[each]) for each in sorted(first.keys() & second.keys())]


def profiles_of(run: Run) -> Profiles:
    """All profiles of a run; none if it was not profiled.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[tuple[str, str], dict[int, Profile]] = {}
    if not run.manifest.profile:
        return Profiles({})
    for cell in run.ok_cells.itertuples():
        path = run.log_directory(str(cell.cell)) / FILE
        if path.exists():
            key = str(cell.workload), str(cell.variant)
            found.setdefault(key, {})[int(str(cell.repetition))] = read_profile(path)
    return Profiles(found)


def compare_profiles(run: Run, profiles: Profiles) -> list[ProfileComparison]:
    """Each patched variant against the baseline, per workload; only where there are pairs of boots."""
    variants = run.manifest.variants
    baseline = next((each.name for each in variants if each.role is Role.BASELINE), "")
    control = next((each.name for each in variants if each.role is Role.CONTROL), "")
    found = []
    for workload in run.manifest.workloads:
        for variant in variants:
            if variant.role is not Role.PATCHED:
                continue
            pairs = profiles.pairs(workload, variant.name, baseline)
            if pairs:
                same = profiles.pairs(workload, control, baseline)
                found.append(_compared(workload, variant.name, baseline, pairs, same))
    return found


def _compared(
    workload: str,
    variant: str,
    baseline: str,
    pairs: Sequence[tuple[Profile, Profile]],
    same: Sequence[tuple[Profile, Profile]] = (),
) -> ProfileComparison:
    def floor(of: Callable[[Profile], int]) -> int:
        return max((abs(of(new) - of(old)) for old, new in same), default=0)

    names = {name for pair in pairs for profile in pair for name in profile.own}
    rows = [
        _row(
            name,
            [(_own(name, old), _own(name, new)) for old, new in pairs],
            floor(partial(_own, name)),
            [new.with_callees.get(name, 0) - old.with_callees.get(name, 0) for old, new in pairs],
        )
        for name in names
        if name != USER
    ]
    rows.sort(key=lambda row: (-row.change, row.function))
    kthreads = [
        _row(
            name,
            [(_of_thread(name, old), _of_thread(name, new)) for old, new in pairs],
            floor(partial(_of_thread, name)),
        )
        for name in {name for pair in pairs for profile in pair for name in profile.threads}
    ]
    kthreads.sort(key=lambda row: (-abs(row.change), row.function))
    totals = [(old.total, new.total) for old, new in pairs]
    users = [(_own(USER, old), _own(USER, new)) for old, new in pairs]
    return ProfileComparison(
        workload,
        variant,
        baseline,
        len(pairs),
        _row("", totals, floor(lambda profile: profile.total)),
        _row(USER, users, floor(partial(_own, USER))),
        tuple(kthreads),
        tuple(rows),
    )


def _own(name: str, profile: Profile) -> int:
    return profile.own.get(name, 0)


def _of_thread(name: str, profile: Profile) -> int:
    return profile.threads.get(name, 0)


def _row(name: str, pairs: Sequence[tuple[int, int]], floor: int, callees: Iterable[int] = ()) -> FunctionRow:
    changes = [new - old for old, new in pairs]
    return FunctionRow(
        name,
        statistics.median(old for old, _ in pairs),
        statistics.median(new for _, new in pairs),
        statistics.median(changes),
        min(changes),
        max(changes),
        statistics.median([*callees] or changes),
        floor,
    )


def mean_chains(profiles: Iterable[Profile]) -> dict[Chain, float]:
    """Chain -> mean number of instructions, without the idle task."""
    every = list(profiles)
    found: dict[Chain, float] = {}
    for profile in every:
        for chain, count in profile.busy.items():
            found[chain] = found.get(chain, 0.0) + count / len(every)
    return found


def profile_text(comparisons: Sequence[ProfileComparison]) -> str:
    """The comparisons as text of at most 110 columns; empty if there is none."""
    return "\n\n".join("\n".join(_lines(each)) for each in comparisons)


def _lines(found: ProfileComparison) -> list[str]:
    pairs = f"{found.pairs} pair{'' if found.pairs == 1 else 's'} of boots"
    lines = [
        f"{found.workload}: guest instructions of {found.variant} against {found.baseline}, medians of {pairs}",
        "functions that changed alike in each pair, by more than A/A, and by 0.01% of all instructions or more",
        "",
        (
            f"{'':<{_NAME_WIDTH}} {'baseline':>13} {'variant':>13} {'change':>12} {'of all':>8} {'A/A':>10} "
            f"{'with callees':>13}"
        ),
        _line("processes", found.total, found, callees=False),
        _line("user space", found.user, found, callees=False),
    ]
    for heading, rows in (("functions that grew", found.grown), ("functions that shrank", found.shrunk)):
        lines += ["", heading if rows else f"{heading}: none"]
        lines += [_line(row.function, row, found) for row in rows]
    lines += ["", "kernel threads, with callees"]
    lines += [_line(row.function, row, found, callees=False) for row in found.threads[:_THREADS]]
    return lines


def _line(name: str, row: FunctionRow, found: ProfileComparison, callees: bool = True) -> str:
    share = percent(row.change / found.total.baseline, signed=True) if found.total.baseline else ""
    figures = (
        f"{row.baseline:>13,.0f} {row.compared:>13,.0f} {row.change:>+12,.0f} {share:>8} {row.floor:>10,.0f}"
    )
    figures = f"{figures} {row.callees:>+13,.0f}" if callees else figures
    if len(name) > _NAME_WIDTH:
        return f"{name}\n{'':<{_NAME_WIDTH}} {figures}"
    return f"{name:<{_NAME_WIDTH}} {figures}"
