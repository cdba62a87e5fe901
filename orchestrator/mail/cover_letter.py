# SPDX-License-Identifier: GPL-2.0-only
"""The text of a cover letter: the series, its groups, results of a run, and changes since the last version."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.changelog import WIDTH, changelog_text
from orchestrator.analysis.comparison import compare
from orchestrator.errors import UserError
from orchestrator.kernel.series import Series, Stage
from orchestrator.kernel.source import SourceTree
from orchestrator.store.run import Run

#: Subdirectory of the series with one text per group.
_TEXTS = "cover-letter"


def cover_text(
    series: Series,
    stages: Sequence[Stage],
    source: SourceTree,
    texts: Path,
    run: Run | None = None,
    notes: Path | None = None,
) -> str:
    """The text between the subject and the list of patches, wrapped at 75 columns except for `notes`.

    Args:
        texts: directory of the series, ``kernel_patches``; it has the texts of groups as ``cover-letter/GROUP.txt``.
        run: run whose figures are shown.
        notes: file with the changes since the last version, used as it is.

    Raises:
        UserError: a file cannot be read, or the run has none of these stages.
    """
    groups = list(dict.fromkeys(stage.group for stage in stages))
    paragraphs = [_read(path) for group in groups if (path := texts / _TEXTS / f"{group}.txt").is_file()]
    if series.groups:
        paragraphs.append(_groups(stages, groups))
    if run is not None:
        paragraphs.append(_figures(run, stages))
    if notes is not None:
        paragraphs.append(_read(notes))
    paragraphs.append(_wrapped(f"The patches apply to {source.description} (tree {source.tree[:12]})."))
    return "\n\n".join(paragraphs) + "\n"


def _groups(stages: Sequence[Stage], groups: Sequence[str]) -> str:
    if len(groups) == 1:
        return _wrapped(f"All patches belong to one group, {groups[0]}.")
    lines = [
        _wrapped("Each group builds on the previous ones, and the series may end after any of them:"),
        "",
    ]
    for group in groups:
        numbers = [stage.number for stage in stages if stage.group == group]
        which = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
        lines.append(f"  {which:>6}  {group}")
    return "\n".join(lines)


def _figures(run: Run, stages: Sequence[Stage]) -> str:
    ours = {stage.number: stage for stage in stages}
    measured: dict[int, str] = {}
    for variant in run.manifest.variants:
        for stage in variant.stages:
            measured[stage.number] = stage.digest
    unknown = sorted(set(measured) - set(ours))
    if not measured or unknown:
        raise UserError(
            f"{run.path.name} measured {'stages ' + ', '.join(map(str, unknown)) if unknown else 'no stage'}, "
            "which this export does not have; choose a run of the exported patches."
        )
    # Tell the reader if the figures are of other versions of the patches.
    older = [number for number, digest in sorted(measured.items()) if ours[number].digest != digest]
    text = changelog_text(run, compare(run)).rstrip("\n")
    heading = f"Results of a run with patches 1-{max(measured)}"
    heading += f", measured with an earlier version of {_patches(older)}:" if older else ":"
    return f"{_wrapped(heading)}\n\n{text}"


def _patches(numbers: Sequence[int]) -> str:
    return f"patch{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this text ({error}).") from error


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
