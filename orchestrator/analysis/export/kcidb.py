# SPDX-License-Identifier: GPL-2.0-only
"""A report for KCIDB, the database of the kernel's continuous integration (schema: package kcidb-io)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from orchestrator.analysis.comparison import Comparison
from orchestrator.analysis.export.check import Check, CheckStatus
from orchestrator.store.manifest import VariantRecord
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

#: Version of the schema; receivers upgrade older versions.
VERSION: Final = {"major": 5, "minor": 3}
#: Default origin (the reporting system in KCIDB).
ORIGIN: Final = "orchestrate"
_EXCERPT: Final = 16384  # maximum length of log_excerpt in the database, in characters


def to_kcidb(run: Run, comparison: Comparison, checks: Sequence[Check], origin: str = ORIGIN) -> str:
    """`run` as JSON of version 5.3: one checkout per source tree, one build per kernel, one test per check.

    Args:
        origin: the reporting system, ``[a-z0-9_]+``.
    """
    report = {
        "version": VERSION,
        "checkouts": list(_checkouts(run, origin)),
        "builds": list(_builds(run, checks, origin)),
        "tests": list(_tests(run, comparison, checks, origin)),
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _stages(variant: VariantRecord) -> str:
    digests = "".join(f"{stage.digest}\n" for stage in variant.stages)
    return hashlib.sha256(digests.encode()).hexdigest() if digests else ""


def _checkout_id(run: Run, variant: VariantRecord, origin: str) -> str:
    return f"{origin}:{run.name}/{variant.patchset}"


def _checkouts(run: Run, origin: str) -> Iterator[dict[str, Any]]:
    source = run.manifest.source
    seen = set()
    for variant in run.manifest.variants:
        identity = _checkout_id(run, variant, origin)
        if identity in seen:
            continue
        seen.add(identity)
        yield _known(
            id=identity,
            origin=origin,
            tree_name=source.description or None,
            comment=f"{source.version or 'unknown'} with {len(variant.stages)} stages applied",
            patchset_hash=_stages(variant),
            start_time=run.manifest.created_utc or None,
            valid=True,
            misc={"tree": variant.tree, "stages": [stage.name for stage in variant.stages]},
        )


def _builds(run: Run, checks: Sequence[Check], origin: str) -> Iterator[dict[str, Any]]:
    broken = {check.variant: check.text for check in checks if check.kind == Outcome.BUILD_FAILED}
    for variant in run.manifest.variants:
        name, kernel = variant.name, variant.kernel
        facts = asdict(kernel) if kernel else {}
        status = "FAIL" if name in broken else "PASS" if kernel else "MISS"
        yield _known(
            id=f"{origin}:{run.name}/{name}",
            checkout_id=_checkout_id(run, variant, origin),
            origin=origin,
            comment=name,
            architecture="x86_64",
            compiler=kernel.compiler if kernel else None,
            config_name=run.manifest.flavour,
            status=status,
            log_excerpt=broken.get(name, "")[-_EXCERPT:] or None,
            misc={key: value for key, value in facts.items() if key != "compiler"}
            | {"knobs": variant.knobs, "cmdline": variant.cmdline},
        )


_STATUS: Final = {
    CheckStatus.PASSED: "PASS",
    CheckStatus.FAILED: "FAIL",
    CheckStatus.ERROR: "MISS",
    CheckStatus.SKIPPED: "SKIP",
}


def _tests(
    run: Run, comparison: Comparison, checks: Sequence[Check], origin: str
) -> Iterator[dict[str, Any]]:
    machine = comparison.conditions
    environment = {"comment": f"QEMU, {machine.accelerator}, {machine.topology}"}
    medians = {
        f"{row.variant}:{row.metric}": (row.compared.median, row.unit)
        for row in comparison.rows
        if row.primary
    }
    builds = [variant.name for variant in run.manifest.variants]
    for number, check in enumerate(checks, 1):
        if check.kind == Outcome.BUILD_FAILED:
            continue  # reported by the build
        median, unit = medians.get(check.name, (None, ""))
        yield _known(
            id=f"{origin}:{run.name}/{number}",
            # Checks of the whole run are reported for its last variant.
            build_id=f"{origin}:{run.name}/{check.variant or builds[-1]}",
            origin=origin,
            environment=environment,
            path=f"orchestrate.{check.suite}",
            comment=check.name,
            status=_STATUS[check.status],
            number=None if median is None else {"value": median, "unit": unit},
            start_time=check.started,
            duration=check.seconds,
            log_excerpt=check.text[-_EXCERPT:] or None,
            misc={"kind": check.kind},
        )


def _known(**properties: Any) -> dict[str, Any]:
    """`properties` without unknown ones, since the schema has no null."""
    return {key: value for key, value in properties.items() if value is not None}
