# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from guest_data import FAULT_LATENCY, ROOT
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.guest.ssh import Finished
from orchestrator.guest.workload import (
    WorkloadFailed,
    check_parameters,
    load_workload,
    load_workloads,
    observations_of,
    parse_output,
    parse_workload_arguments,
    run_workload,
)

MANIFEST = """
title = "A title"
program = "toy"
timeout_s = 10
sample_interval_ms = 0
[quick]
pages = 2
memory = "4M"
[parameters.pages]
type = "integer"
default = 4
minimum = 1
maximum = 512
unit = "pages"
help = "Pages."
[parameters.memory]
type = "size"
default = "64M"
minimum = "2M"
maximum = "1G"
help = "Memory."
[parameters.order]
type = "choice"
default = "random"
choices = ["sequential", "random"]
help = "Order."
[metrics."fault_{clock}.p50"]
unit = "{clock}"
better = "lower"
primary = true
clock = true
help = "Latency."
[metrics."rss_kib.max"]
unit = "KiB"
help = "Memory."
"""
OK = '{"metric": "fault_ns.p50", "unit": "ns", "value": 5}\n{"end": "ok"}\n'


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "toy" / "toy.toml"
    path.parent.mkdir()
    path.write_text(MANIFEST)
    return path


class OneAnswerGuest:
    """Answers one command."""

    def __init__(
        self, stdout: str, status: int | None = 0, signal: str | None = None, stderr: str = ""
    ) -> None:
        self.argv: list[str] = []
        self._end = (status, signal, stdout, stderr)

    def run(self, argv: list[str], **options: Any) -> Finished:
        self.argv = argv
        return Finished(tuple(argv), *self._end, 0.1)


def run_with(guest: OneAnswerGuest, manifest: Path, tmp_path: Path, **parameters: str) -> Any:
    return run_workload(guest, load_workload(manifest), parameters, 7, "ns", tmp_path, 10)  # type: ignore[arg-type]


def test_a_manifest_is_read(manifest: Path) -> None:
    (workload,) = load_workloads(manifest.parent.parent).values()
    assert workload.name == workload.program == "toy"
    assert workload.parameters["memory"].default == str(64 << 20)
    assert workload.metrics["fault_{clock}.p50"].better == "lower"
    assert workload.metrics["rss_kib.max"].better is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('title = "A title"\n', "", "title: this key is missing"),
        ("timeout_s = 10", "timeout_s = 0", "timeout_s: must be more than 0"),
        ("timeout_s = 10", "timeout_s = true", "timeout_s: must be a whole number, not true"),
        ("timeout_s = 10", "timeout = 10", "toml:4: timeout: unknown key; did you mean timeout_s?"),
        (
            'program = "toy"',
            'program = "toy"\nprogramm = 1',
            "toml:4: programm: unknown key; did you mean program?",
        ),
        ("default = 4", "default = 4000", "parameters.pages.default: pages=4000: it must be 1 to 512 pages"),
        (
            "default = 4",
            'default = "4"',
            "toml:11: parameters.pages.default: must be a whole number, not '4'",
        ),
        (
            'type = "integer"',
            'type = "number"',
            "toml:10: parameters.pages.type: 'number': choose integer",
        ),
        ('minimum = "2M"', 'minimum = "2X"', "parameters.memory.minimum: must be a size"),
        ('default = "random"', 'default = "none"', "parameters.order.default: order=none: choose"),
        ("[parameters.pages]", "[parameters.seed]", "parameters.seed"),
        ("[parameters.pages]", "[parameters.size]", "parameters.size"),
        ("[quick]", "[slow]", "slow: unknown key"),
        ("pages = 2", "page = 2", "quick.page"),
        ("pages = 2", "pages = 1000", "quick.pages"),
        (
            'better = "lower"',
            'better = "less"',
            "metrics.fault_{clock}.p50.better: 'less': choose lower",
        ),
        ("clock = true\n", "", "clock: must be true if and only if"),
        ('[metrics."rss_kib.max"]', "[metrics.rss]", "metrics.rss"),
        ("[parameters.pages]", "[parameters.pages", "cannot read this manifest"),
        ('choices = ["sequential", "random"]', "", "toml:22: parameters.order.choices: this key is missing"),
        (
            'choices = ["sequential", "random"]',
            "choices = []",
            "toml:25: parameters.order.choices: must have",
        ),
        (
            'choices = ["sequential", "random"]',
            'choices = [\n"random",\n1]',
            "toml:25: parameters.order.choices 2: ",
        ),
        ("minimum = 1\n", "minimum = 1\nchoices = []\n", "toml:13: parameters.pages.choices: a parameter of"),
    ],
)
def test_a_fault_of_a_manifest_is_reported_with_file_and_key(
    manifest: Path, old: str, new: str, fault: str
) -> None:
    assert old in MANIFEST
    manifest.write_text(MANIFEST.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_workload(manifest)
    assert str(manifest) in str(error.value) and fault in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_without_a_manifest_is_not_a_workload(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    with pytest.raises(UserError, match=r"toy\.toml: this manifest is missing"):
        load_workloads(tmp_path)


@pytest.mark.parametrize(
    ("argument", "fault"),
    [
        ("toys", "unknown workload 'toys', did you mean toy"),
        ("toy:page=1", "no parameter 'page', did you mean pages"),
        ("toy:seed=1", "no parameter 'seed'"),
        ("toy:pages=0", "pages=0: it must be 1 to 512 pages"),
        ("toy:pages=x", "pages=x: it must be an integer"),
        ("toy:memory=3q", "memory=3q: it must be a size such as 4096, 64K, 2M or 1G"),
        ("toy:memory=1K", "memory=1K: it must be 2097152 to 1073741824 bytes"),
        ("toy:order=up", "order=up: choose sequential or random"),
        ("toy:pages", "'pages' has no '='"),
        ("toy:pages=1,pages=2", "pages is given twice"),
    ],
)
def test_a_wrong_argument_is_reported_in_a_sentence(manifest: Path, argument: str, fault: str) -> None:
    with pytest.raises(UserError) as error:
        parse_workload_arguments([argument], load_workloads(manifest.parent.parent))
    assert fault in str(error.value) and str(error.value).endswith(".")


def test_arguments_are_checked_and_brought_into_the_programs_form(manifest: Path) -> None:
    known = load_workloads(manifest.parent.parent)
    assert parse_workload_arguments(["toy:memory=2M,pages=8"], known) == {
        "toy": {"memory": "2097152", "pages": "8"}
    }
    # What was checked is still right when it is read back from a run.
    assert check_parameters(known, "toy", {"memory": "2097152"}) == {"memory": "2097152"}
    with pytest.raises(UserError, match="given twice"):
        parse_workload_arguments(["toy", "toy"], known)


def test_a_size_stands_for_the_parameters_of_the_manifest(manifest: Path) -> None:
    known = {"toy": load_workload(manifest)}
    quick = {"pages": "2", "memory": str(4 << 20)}
    assert parse_workload_arguments(["toy:size=quick"], known) == {"toy": quick}
    assert parse_workload_arguments(["toy:size=full"], known) == {"toy": {}}
    # What is given beside it wins.
    assert parse_workload_arguments(["toy:pages=9,size=quick"], known) == {"toy": quick | {"pages": "9"}}
    with pytest.raises(UserError, match="workload toy: size=tiny: choose quick or full"):
        check_parameters(known, "toy", {"size": "tiny"})


def test_the_program_gets_every_parameter_the_seed_and_the_clock(manifest: Path, tmp_path: Path) -> None:
    guest = OneAnswerGuest(OK)
    result = run_with(guest, manifest, tmp_path, pages="8")
    assert guest.argv == [
        "/usr/lib/workloads/toy", "--seed", "7", "--clock", "ns",
        "--pages", "8", "--memory", "67108864", "--order", "random",
    ]  # fmt: skip
    assert [(o.metric, o.unit, o.value) for o in result.observations] == [("fault_ns.p50", "ns", 5.0)]


@pytest.mark.parametrize(
    ("guest", "fault"),
    [
        (OneAnswerGuest(""), "stopped without reporting its end"),
        (OneAnswerGuest(OK.replace('{"end": "ok"}\n', "")), "stopped without reporting its end"),
        (OneAnswerGuest("", None, "SIGKILL", "killed\n"), "signal SIGKILL"),
        (OneAnswerGuest(OK, 1), "ended with exit status 1"),
        (OneAnswerGuest('{"end": "error", "reason": "no memory"}\n', 1), "toy: no memory"),
        (OneAnswerGuest(OK + "more\n"), "line 3 comes after the end: more"),
        (OneAnswerGuest("Killed\n" + OK), "line 1 is not JSON: Killed"),
        (OneAnswerGuest(OK.replace("fault_ns.p50", "fault_ns.p51")), "no metric fault_ns.p51"),
        (OneAnswerGuest(OK.replace('"ns",', '"ms",')), "in ms, but in ns according to its manifest"),
        (OneAnswerGuest(OK.replace("fault_ns", "fault_insns")), "no metric fault_insns.p50"),
        (OneAnswerGuest(OK.splitlines(keepends=True)[0] + OK), "fault_ns.p50 twice"),
        (OneAnswerGuest(OK.replace("5}", "NaN}")), "line 1 is not JSON"),
        (OneAnswerGuest(OK.replace("5}", '"5"}')), "lacks a unit or a numeric"),
    ],
)
def test_output_that_cannot_be_trusted_is_a_failure(
    guest: OneAnswerGuest, fault: str, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkloadFailed) as error:
        run_with(guest, manifest, tmp_path)
    assert fault in str(error.value)


def test_the_last_output_of_the_program_is_in_the_evidence(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkloadFailed, match="it printed: segfault"):
        run_with(OneAnswerGuest("", None, "SIGSEGV", "a\nsegfault\n"), manifest, tmp_path)


@given(st.text())
def test_any_text_is_either_parsed_or_faulted(text: str) -> None:
    records, fault = parse_output(text)
    assert fault is not None or records[-1].keys() >= {"end"}


@given(st.integers(0, 200))
def test_output_cut_off_anywhere_has_not_ended(cut: int) -> None:
    lines = FAULT_LATENCY.encode()
    cut = min(cut * len(lines) // 200, len(lines) - 2)
    _, fault = parse_output(lines[:cut].decode())
    assert fault is not None


def test_recorded_output_has_the_metrics_of_the_projects_manifest() -> None:
    workload = load_workloads(ROOT / "guest_workloads")["fault_latency"]
    records, fault = parse_output(FAULT_LATENCY)
    assert fault is None
    observed = {o.metric: o.value for o in observations_of(records, workload, "insns")}
    declared = {name.replace("{clock}", "insns") for name in workload.metrics}
    assert set(observed) == {name for name in declared if not name.endswith("_ns.p10")}
    assert observed["faults.total"] == 128 * 64
    # Each region has a reservation, and its unused pages are not part of what is mapped.
    assert observed["reserved_kib.max"] == 128 * (512 - 64) * 4
    assert observed["rss_kib.max"] < 128 * 65 * 4
    # Touched as a whole, all became huge, and none at its first fault.
    assert observed["huge_regions.percent"] == observed["huge_in_place.percent"] == 100
    assert observed["huge_at_fault.percent"] == observed["huge_by_copy.percent"] == 0
    histograms = [record for record in records if "histogram" in record]
    assert {sum(bucket[2] for bucket in each["buckets"]) for each in histograms} == {128 * 64, 128}


def test_the_projects_manifests_are_sound() -> None:
    workloads = load_workloads(ROOT / "guest_workloads")
    assert {"chunk", "fault_latency", "touch"} <= set(workloads)
    for workload in workloads.values():
        assert any(metric.primary for metric in workload.metrics.values()), workload.name
        directory = workload.name if workload.command is None else workload.program
        assert (ROOT / "guest_workloads" / directory / f"{workload.program}.c").is_file()
        json.dumps({name: parameter.help for name, parameter in workload.parameters.items()})
