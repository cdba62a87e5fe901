# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate list``: every name that an option takes is there, with its default, unit and meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.application import status_of
from orchestrator.experiment.knob import BASELINE_KNOBS, check_value
from orchestrator.guest.workload import check_parameters, load_workloads
from orchestrator.kernel.config import flavours
from orchestrator.kernel.series import load_series

ROOT = Path(__file__).resolve().parents[2]
SERIES = load_series(ROOT / "kernel_patches")


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(ROOT))


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert status_of(["list", *words, "--json"]) == 0
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return entries


def test_workloads_have_every_parameter_with_a_default_that_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = load_workloads(ROOT / "guest_workloads")
    entries = listed(capsys, "workloads")
    assert [entry["name"] for entry in entries] == list(known)
    for entry in entries:
        workload = known[entry["name"]]
        assert entry["title"] == workload.title
        assert [each["name"] for each in entry["parameters"]] == ["size", *workload.parameters]
        defaults = {each["name"]: each["default"] for each in entry["parameters"]}
        check_parameters(known, workload.name, defaults)
        assert all(each["help"] and each["values"] for each in entry["parameters"])
        assert {each["name"] for each in entry["metrics"]} == set(workload.metrics)


def test_knobs_have_a_default_that_is_taken_and_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    entries = listed(capsys, "knobs")
    assert [entry["name"] for entry in entries] == [*(knob.name for knob in SERIES.knobs), *BASELINE_KNOBS]
    for entry in entries:
        check_value(entry["name"], entry["default"], SERIES)
        assert entry["help"] and entry["path"].startswith("/sys/")


def test_patchsets_are_those_that_can_be_selected(capsys: pytest.CaptureFixture[str]) -> None:
    entries = listed(capsys, "patchsets")
    plain = [entry for entry in entries if entry["stages"] is not None]
    assert [entry["name"] for entry in plain] == ["baseline", *SERIES.groups, "full"]
    for entry in plain:
        assert len(SERIES.select(entry["name"])) == entry["stages"]


def test_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    entries = listed(capsys, "configs")
    assert [entry["name"] for entry in entries] == list(flavours(ROOT / "vm_images"))
    assert all(entry["help"].endswith(".") for entry in entries)


@pytest.mark.parametrize("what", ["workloads", "knobs", "patchsets", "configs"])
def test_the_text_has_every_name_and_fits(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry["name"] for entry in listed(capsys, what)]
    assert status_of(["list", what]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert set(names) <= {word.rstrip(":") for word in text.split()}


def test_one_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry["name"] for entry in listed(capsys, "workloads", "touch")] == ["touch"]
    assert status_of(["list", "knobs", "enabeld"]) == 2
    assert "unknown name; did you mean enabled?" in capsys.readouterr().err
    assert status_of(["list", "everything"]) == 2
