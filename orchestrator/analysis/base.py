# SPDX-License-Identifier: GPL-2.0-only
"""The kernel sources that runs are based on: what a comparison has to say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.store.run import Run


def base_differences(runs: Sequence[Run]) -> list[str]:
    """A sentence where runs, or the variants of one, are on different bases.

    Two bases are the same where their files are: the commit of an imported source depends on them only.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for variant in run.manifest["variants"]:
            identity, description = _base_of(run.manifest, variant)
            users = found.setdefault(identity, {}).setdefault(description, [])
            users.append(variant["name"] if len(runs) == 1 else run.name)
    if len(found) < 2:
        return []
    parts = []
    for names in found.values():
        everyone = dict.fromkeys(user for each in names.values() for user in each)
        parts.append(f"{' and '.join(names)} in {', '.join(everyone)}")
    return [
        f"the base kernels differ: {'; '.join(parts)}. A difference may come from the base, not from the series."
    ]


def notes_on_bases(runs: Sequence[Run]) -> list[str]:
    """Sentences on bases that the series is not checked on, and on stages that were merged three-way."""
    notes = []
    for run in runs:
        source = run.manifest.get("source") or {}
        if source.get("checked") is False:
            notes.append(f"the series is not checked on the base {source.get('description')} ({run.name}).")
        merged = {stage for variant in run.manifest["variants"] for stage in variant.get("merged") or []}
        if merged:
            stages = ", ".join(map(str, sorted(merged)))
            notes.append(f"merged three-way onto {source.get('description')}: stages {stages} ({run.name}).")
    return notes


def _base_of(manifest: Mapping[str, Any], variant: Mapping[str, Any]) -> tuple[str, str]:
    """What a variant's base is known by, and what a person calls it."""
    source = {**(manifest.get("source") or {}), **(variant.get("base") or {})}
    description = str(source.get("description") or source.get("requested") or "an unknown source")
    return str(source.get("commit") or description), description
