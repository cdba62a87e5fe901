# SPDX-License-Identifier: GPL-2.0-only
"""The outputs of a measuring run: comparison, plots, changelog text and report, written to the run directory."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.plots import plot_run
from orchestrator.analysis.profile import compare_profiles, profile_text, profiles_of
from orchestrator.analysis.report import write_report
from orchestrator.analysis.table import to_text
from orchestrator.events import Events
from orchestrator.execution.durations import Durations
from orchestrator.store.run import Run

TABLE = "comparison.txt"
#: Instructions per function, of a run with --profile.
FUNCTIONS = "profile.txt"
FUNCTIONS_JSON = "profile.json"
PAGE = "report.html"


@dataclass(frozen=True)
class RunReport:
    """The outputs that were written.

    Args:
        plots: files of both formats.
        page: the HTML page.
        functions: instructions per function as text; empty without ``--profile``.
    """

    comparison: Comparison
    plots: Sequence[Path]
    page: Path
    functions: str = ""

    @property
    def found_something(self) -> bool:
        """Whether there is a problem besides failed cells: inconsistent counters, or a regression."""
        return any(finding.kind != "failed-cell" for finding in self.comparison.findings)


def conclude(path: Path, events: Events, durations: Durations) -> RunReport:
    """Compare, plot and report the results in a run directory.

    Args:
        durations: stores the duration of this step.
    """
    began = time.monotonic()
    with events.step("compare"):
        run = Run.open(path)
        comparison = compare(run)
        (path / "comparison.json").write_text(comparison.to_json(), encoding="utf-8")
        (path / TABLE).write_text(to_text(comparison), encoding="utf-8")
        (path / "changelog.txt").write_text(changelog_text(run, comparison), encoding="utf-8")
    functions = ""
    if run.manifest.profile:
        with events.step("compare functions"):
            by_function = compare_profiles(run, profiles_of(run))
            functions = profile_text(by_function)
            (path / FUNCTIONS).write_text(functions + "\n", encoding="utf-8")
            facts = json.dumps([each.to_json() for each in by_function], indent=2)
            (path / FUNCTIONS_JSON).write_text(facts + "\n", encoding="utf-8")
    with events.step("plot"):
        plots = plot_run(run, path / "plots")
    with events.step("report"):
        write_report(run, comparison, plots, path / PAGE)
    durations.remember("conclusion", time.monotonic() - began)
    return RunReport(comparison, plots, path / PAGE, functions)
