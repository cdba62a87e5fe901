# SPDX-License-Identifier: GPL-2.0-only
"""run.json: what is written is read again, older files are understood, damaged ones are refused in a sentence."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from records import MANIFEST, planned
from synthetic_run import Synthetic

from orchestrator.errors import UserError
from orchestrator.execution.provenance import measuring_code
from orchestrator.store.manifest import (
    FILE,
    AcceleratorRecord,
    AnswerRecord,
    BaseRecord,
    BisectionRecord,
    BootRecord,
    CalibrationRecord,
    CheckRecord,
    Code,
    CorrectnessRecord,
    Manifest,
    RunKind,
    VerificationRecord,
    read_manifest,
)
from orchestrator.store.probe import Probe

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted(path.parent for path in ROOT.glob("results/reference-*/run.json"))
WRITER = Path("orchestrator/store/manifest.py")


def full() -> Manifest:
    """A record in which no field has its default."""
    begun = Synthetic(repeat=1).manifest()
    variants = tuple(
        replace(
            variant,
            knobs={"zebra": "1", "ant": "2"},
            cmdline=("quiet",),
            base=BaseRecord(description="a base", commit="1" * 40),
            patch_variants={"4": "v6.12"},
            merged=(4,),
            earlier_kernels=(variant.kernel,) if variant.kernel else (),
        )
        for variant in begun.variants
    )
    return replace(
        begun,
        run="a-run",
        created_utc="2000-01-01T00:00:00+00:00",
        ended_utc="2000-01-01T01:00:00+00:00",
        reproduce="orchestrate run",
        finished_by=(Code(version="0.0"),),
        earlier_accelerators=(AcceleratorRecord(name="tcg", clock="ns", reason="asked for", qemu="6.0.0"),),
        calibration=CalibrationRecord(sentence="calibrated", cpu="a CPU", measured={"rounds": 10}),
        margin=0.25,
        repeat=3,
        max_repeat=5,
        sample=("slabinfo",),
        profile=True,
        probes=(Probe("do_exit", ("capture",), fields=("code",)),),
        seed=9,
        timeout_s=12.5,
        tradeoff={"x": "chunk/survivors.total"},
        kind=RunKind.BISECT,
        variants=variants,
        check=CheckRecord(traces=("seed-1",), shrink=True, every_stage=False),
        test=CorrectnessRecord(
            patchset="full", suites=("stress",), only=("vm",), compare=True, cmdline=("quiet",)
        ),
        verification=VerificationRecord(stages=(1, 2), checks=("boots",)),
        bisection=BisectionRecord(
            metric="fault_insns.p50 > +2%",
            confidence=0.99,
            rate=0.5,
            max_boots=40,
            boots=(BootRecord(stage=1, cell="stage-1.chunk.1", why="search"),),
            answer=AnswerRecord(
                conclusion="found",
                stages=("stage-1",),
                sure=0.999,
                condition="if it always shows",
                seen=(3, 3),
                alarms=(0, 4),
                contradicted=False,
                verified=True,
                boots=7,
                reference=None,
                sentence="the first bad stage is 1.",
            ),
        ),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    record = full()
    optional = {each.name: each.default for each in fields(Manifest) if each.name != "schema"}
    assert [name for name, default in optional.items() if getattr(record, name) == default] == []
    (tmp_path / FILE).write_text(record.to_json())
    again = read_manifest(tmp_path)
    assert again == record
    assert list(again.variants[0].knobs) == ["zebra", "ant"]  # the order they are set in


@pytest.mark.parametrize("directory", STORED, ids=lambda path: path.name)
def test_a_stored_run_is_read(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest.kind is RunKind.RUN
    assert manifest.cells and manifest.variants and manifest.workloads
    assert all(
        name == metric.name
        for workload in manifest.workloads.values()
        for name, metric in workload.metrics.items()
    )


def test_there_are_stored_runs() -> None:
    assert STORED


def schema_1(**changes: Any) -> dict[str, Any]:
    """run.json as it was written by version 0.1.0."""
    variants = [
        {
            "name": name,
            "role": role,
            "patchset": name,
            "knobs": {},
            "cmdline": [],
            "stages": [{"number": 1, "name": "structs", "digest": "3b"}] if role == "patched" else [],
        }
        for name, role in (("baseline", "baseline"), ("stage-1", "patched"))
    ]
    return {
        "schema": 1,
        "orchestrate": "0.1.0",
        "run": "20261127T215421Z-core-only",
        "created_utc": "2026-11-27T21:54:21+00:00",
        "command": ["orchestrate", "run", "-p", "core-only"],
        "topology": {"text": "1x512M/1", "nodes": [{"cpus": 1, "memory_mib": 512}], "distances": [[10]]},
        "accelerator": {"name": "auto", "clock": None, "reason": "requested; not yet chosen"},
        "flavour": "measure",
        "source": {"requested": "linux-source-6.12", "description": "linux-source-6.12 6.12.117-1"},
        "series": {"name": "thp-reservations", "title": "mm: thp: reservations", "base": "6.12"},
        "host": {"cpu": "a CPU", "cpus": 2, "memory_mib": 24105, "kernel": "6.18", "load": [4.61, 7.0, 9]},
        "calibration": {"sentence": "said", "cpu": "a CPU", "rounds": 10},
        "tools": {"orchestrate": "0.1.0", "python": "3.11.2"},
        "name": "core-only",
        "variants": variants,
        "workloads": {
            "churn": {
                "title": "Churn",
                "parameters": {},
                "metrics": {"a.total": {"unit": "s", "better": None, "primary": False, "help": "A."}},
            }
        },
        "cells": [],
        "image": "0bbb331b7ee419983dbc",
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, RunKind.RUN),
        ({"kind": "check"}, RunKind.CHECK),
        ({"kind": "test"}, RunKind.TEST),
        (
            {
                "bisection": {
                    "until": "kernel-bug",
                    "matching": None,
                    "confidence": 0.99,
                    "rate": 0.5,
                    "max_boots": 40,
                },
                "boots": [{"stage": 1, "cell": "stage-1.churn.1", "why": "search"}],
            },
            RunKind.BISECT,
        ),
    ],
)
def test_a_file_of_schema_1_is_read(tmp_path: Path, changes: dict[str, Any], kind: RunKind) -> None:
    (tmp_path / FILE).write_text(json.dumps(schema_1(**changes)))
    manifest = read_manifest(tmp_path)
    assert manifest.kind is kind
    assert manifest.code == Code(version="0.1.0")
    assert manifest.image == {"churn": "0bbb331b7ee419983dbc"}
    assert manifest.calibration is not None and manifest.calibration.sentence == "said"
    assert manifest.workloads["churn"].metrics["a.total"].name == "a.total"
    assert (manifest.bisection is not None) == (kind is RunKind.BISECT)
    if manifest.bisection:
        assert manifest.bisection.boots == (BootRecord(stage=1, cell="stage-1.churn.1", why="search"),)


Damage = Callable[[dict[str, Any]], Any]


def _without(key: str) -> Damage:
    return lambda content: content.pop(key)


DAMAGES: list[tuple[Damage, str]] = [
    (_without("cells"), "cells is missing"),
    (_without("accelerator"), "accelerator is missing"),
    (lambda content: content["topology"].update(sockets=2), "topology.sockets is unknown"),
    (lambda content: content["variants"][0].pop("patchset"), "variants.0.patchset is missing"),
    (lambda content: content["variants"][0].update(role="friend"), "variants.0.role"),
    (lambda content: content.update(repeat="5"), "repeat: input should be a valid integer"),
    (lambda content: content.update(kind="holiday"), "kind"),
    (lambda content: content.update(cells="none"), "cells"),
    (lambda content: content["cells"][0].pop("seed"), "cells.0.seed is missing"),
    (lambda content: content["cells"].append(content["cells"][0]), "has the same planned cell twice"),
    (lambda content: content["workloads"]["chunk"].update(metrics=[]), "workloads.chunk.metrics"),
]
#: Keys of schema 1 came and went with the code, so one that is not known says nothing of the file.
OF_SCHEMA_2: list[tuple[Damage, str]] = [
    (lambda content: content.update(extra=1), "extra is unknown"),
    (_without("kind"), "kind is missing"),
    (_without("code"), "code is missing"),
]


@pytest.mark.parametrize(
    ("schema", "damage", "fault"),
    [
        *((schema, *damage) for schema in (1, 2) for damage in DAMAGES),
        *((2, *damage) for damage in OF_SCHEMA_2),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(
    tmp_path: Path, schema: int, damage: Damage, fault: str
) -> None:
    content = json.loads(Synthetic(repeat=1).manifest().to_json())
    damage(content)
    content["schema"] = schema
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    sentence = str(error.value)
    assert fault in sentence and str(tmp_path / FILE) in sentence and "\n" not in sentence


def test_the_sentence_names_the_first_faults_only(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"schema": 2, "run": "x"}')
    with pytest.raises(
        UserError, match=r"kind is missing; name is missing; command is missing; and \d+ more"
    ):
        read_manifest(tmp_path)


def test_a_run_says_which_code_measures() -> None:
    code = measuring_code()
    assert code.version
    if (ROOT / ".git").exists():
        assert code.checkout and code.checkout.removesuffix("-dirty")


def _accesses(tree: ast.AST) -> Iterator[ast.expr]:
    """Where a manifest is subscripted or asked with get()."""

    def is_manifest(node: ast.expr) -> bool:
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return name.lstrip("_") == "manifest"

    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_manifest(node.value):
            yield node
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "items", "keys")
            and is_manifest(node.func.value)
        ):
            yield node


def _file_names(tree: ast.AST) -> Iterator[ast.expr]:
    """Strings that name the file itself; a sentence that mentions it is no access."""
    for node in ast.walk(tree):
        named = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if isinstance(node, ast.Constant) and (named == FILE or named.endswith(f"/{FILE}")):
            yield node


def test_the_check_of_accesses_finds_them() -> None:
    source = (
        "run.manifest['cells']; manifest.get('x'); self._manifest['y']; path / 'run.json'; glob('*/run.json')"
    )
    tree = ast.parse(source)
    assert len(list(_accesses(tree))) == 3
    assert len(list(_file_names(tree))) == 2


def test_one_module_knows_the_keys_of_run_json() -> None:
    found = []
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.relative_to(ROOT) != WRITER:
            nodes = [*_accesses(tree), *_file_names(tree)]
            found += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in nodes]
    assert found == []


def test_a_plan_with_a_bad_cell_is_refused(tmp_path: Path) -> None:
    wrong = replace(MANIFEST, cells=(planned("../elsewhere"),))
    (tmp_path / FILE).write_text(wrong.to_json())
    with pytest.raises(UserError, match="not a directory name"):
        read_manifest(tmp_path)


def test_a_digit_that_has_changed_is_found_and_an_edit_can_be_kept(tmp_path: Path) -> None:
    record = MANIFEST
    text = record.to_json()
    (tmp_path / FILE).write_text(text)
    assert read_manifest(tmp_path) == record
    changed = re.sub(r'"seed": (\d+)', '"seed": 9\\1', text, count=1)
    assert changed != text
    (tmp_path / FILE).write_text(changed)
    with pytest.raises(UserError, match=r"run\.json is damaged: its content has changed"):
        read_manifest(tmp_path)
    edited = json.loads(changed)
    del edited["digest"]
    (tmp_path / FILE).write_text(json.dumps(edited))
    assert read_manifest(tmp_path) != record
