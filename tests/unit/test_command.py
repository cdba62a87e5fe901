# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from guest_data import ROOT

from orchestrator.errors import UserError
from orchestrator.execution.measure.commands import CommandOptions, check_known, commands_of, commands_of_run
from orchestrator.execution.measure.request import workload_record
from orchestrator.guest.command import COMMAND_METRICS, GuestCommand, bring, files_of, values_in
from orchestrator.guest.image import compile_workload
from orchestrator.guest.ssh import Finished
from orchestrator.guest.workload import (
    WorkloadFailed,
    check_parameters,
    known_workloads,
    load_workload,
    own_directories,
    parse_output,
    run_workload,
)
from orchestrator.kernel.series import load_series
from orchestrator.store.manifest import WorkloadRecord

MANIFEST = """
title = "Mine"
command = ["bench", "--size={memory}", "--seed", "{seed}", "{kept}"]
files = { bench = "bench.sh" }
timeout_s = 10
sample_interval_ms = 0
[parameters.memory]
type = "size"
default = "1M"
minimum = "4K"
maximum = "1G"
help = "Size."
[parameters.kept]
type = "text"
default = "a b"
help = "Any text."
[metrics."rate.mean"]
unit = "MiB/s"
better = "higher"
primary = true
help = "Rate."
pattern = 'rate: ([0-9.]+)'
"""


class Told:
    """A guest that records what it is asked, and answers with the same."""

    def __init__(self, stdout: str = "", stderr: str = "", status: int = 0) -> None:
        self.answer = Finished((), status, None, stdout, stderr, 0.1)
        self.asked: list[tuple[list[str], dict[str, Any]]] = []

    def run(self, argv: list[str], **options: Any) -> Finished:
        self.asked.append((argv, options))
        return self.answer

    def download(self, remote: str, local: Path) -> None:
        local.write_text(remote)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "mine" / "mine.toml"
    path.parent.mkdir(parents=True)
    path.write_text(MANIFEST)
    (path.parent / "bench.sh").write_text("#!/bin/sh\necho rate: 3\n")
    (path.parent / "bench.sh").chmod(0o755)
    return path


def record_of(name: str, options: CommandOptions, argument: str) -> dict[str, WorkloadRecord]:
    _, found = commands_of([argument], options)
    series = load_series(ROOT / "kernel_patches")
    return {name: workload_record(found[name], {}, series)}


def test_a_command_becomes_a_workload_named_after_its_program() -> None:
    names, found = commands_of(
        ["touch:size=quick", "cmd:/opt/My-Bench -n 3", "cmd:My-Bench 'a b'"], CommandOptions()
    )
    assert names == ["touch:size=quick", "cmd_my_bench", "cmd_my_bench_2"]
    assert found["cmd_my_bench_2"].command == GuestCommand(("My-Bench", "a b"))
    assert set(found["cmd_my_bench"].metrics) == set(COMMAND_METRICS)
    assert [each.name for each in found["cmd_my_bench"].metrics.values() if each.primary] == [
        "run_{clock}.sum"
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (["touch"], CommandOptions(metrics=["a=b"]), "go with a command"),
        (["cmd:"], CommandOptions(), "name a program"),
        (["cmd:sh -c 'a"], CommandOptions(), "No closing quotation"),
        (["cmd:a"], CommandOptions(metrics=["rate"]), "write NAME=REGEX"),
        (["cmd:a"], CommandOptions(metrics=["rate=("]), "not a regular expression"),
        (["cmd:a"], CommandOptions(metrics=["Rate=x"]), "a metric has a name like"),
        (["cmd:a"], CommandOptions(metrics=["rate=x", "rate.value=y"]), "another metric rate.value"),
        (["cmd:a"], CommandOptions(metrics=["faults.total=x"]), "another metric faults.total"),
        (["cmd:a"], CommandOptions(metrics=["rate,lower,higher=x"]), "at most one unit"),
        (["cmd:a"], CommandOptions(copy_in=["/no/such"]), "there is no /no/such on this host"),
    ],
)
def test_a_bad_command_is_one_clear_sentence(
    arguments: list[str], options: CommandOptions, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        commands_of(arguments, options)


def test_a_metric_with_a_direction_is_primary_and_the_run_time_no_longer_is() -> None:
    _, found = commands_of(["cmd:a"], CommandOptions(metrics=["rate,MB/s,higher=(.)", "other=x"]))
    metrics = found["cmd_a"].metrics
    assert (metrics["rate.value"].unit, metrics["rate.value"].better) == ("MB/s", "higher")
    assert [each.name for each in metrics.values() if each.primary] == ["rate.value"]


def test_a_program_brings_its_libraries(tmp_path: Path) -> None:
    files = {each.path: each for each in files_of(Path("/bin/ls"), "ls")}
    assert files["/work/ls"].mode == 0o755
    assert any(path.endswith("/libc.so.6") for path in files)
    assert any("/ld-linux" in path for path in files)
    (tmp_path / "data").write_bytes(b"\x7fnot a program")
    assert [each.path for each in files_of(tmp_path, "/opt/x")] == ["/opt/x/data"]


def test_a_library_outside_of_the_loaders_directories_is_found_by_the_command(tmp_path: Path) -> None:
    library, program = tmp_path / "libown.so", tmp_path / "program"
    subprocess.run(
        ["gcc", "-shared", "-x", "c", "-", "-o", str(library)], input=b"int f(void){return 0;}", check=True
    )
    subprocess.run(
        ["gcc", "-x", "c", "-", "-x", "none", str(library), f"-Wl,-rpath,{tmp_path}", "-o", str(program)],
        input=b"int f(void); int main(void){return f();}",
        check=True,
    )
    command = GuestCommand(("program",), tuple(files_of(program, "program")))
    assert str(library) in [each.path for each in command.files]
    assert command.environment["LD_LIBRARY_PATH"] == str(tmp_path)
    library.unlink()
    with pytest.raises(UserError, match=r"needs the shared library .*libown\.so, which is not on this host"):
        files_of(program, "program")


def test_files_arrive_as_one_archive_with_the_directory_of_the_command() -> None:
    guest = Told()
    bring(guest, files_of(Path(__file__), "/opt/test.py"))  # type: ignore[arg-type]
    ((argv, options),) = guest.asked
    assert argv == ["tar", "x", "-C", "/"]
    with tarfile.open(fileobj=io.BytesIO(options["stdin"])) as packed:
        assert packed.getnames() == ["work", "opt/test.py"]
        member = packed.extractfile("opt/test.py")
        assert member is not None and member.read() == Path(__file__).read_bytes()
    with pytest.raises(UserError, match="No space left on device"):
        bring(Told(stderr="tar: write error: No space left on device\n", status=1), [])  # type: ignore[arg-type]


def test_the_last_number_that_a_pattern_finds_is_the_value() -> None:
    assert values_in("rate 1\nrate 2.5e3 x", {"a": r"^rate (\S+)", "b": r"\d"}) == {"a": 2500.0, "b": 3.0}
    with pytest.raises(UserError, match="has nothing for the metric a"):
        values_in("", {"a": "x"})
    with pytest.raises(UserError, match="has no number for the metric a, but 'many'"):
        values_in("rate many", {"a": r"rate (\w+)"})


def test_a_recorded_command_can_be_resumed_unless_its_file_has_changed(tmp_path: Path) -> None:
    program = tmp_path / "a b"
    program.write_text("1")
    options = CommandOptions([str(program)], ["out put"], ["rate=a (.)"])
    recorded = record_of("cmd_a_b", options, "cmd:'a b' \"c d\"")
    (again,) = commands_of_run(recorded).values()
    assert again.command == commands_of(["cmd:'a b' \"c d\""], options)[1]["cmd_a_b"].command
    program.write_text("2")
    with pytest.raises(UserError, match="has changed since the run began"):
        commands_of_run(recorded)
    with pytest.raises(UserError, match="give --workloads DIR again"):
        check_known(recorded, {})


def test_a_manifest_may_name_any_program(manifest: Path, tmp_path: Path) -> None:
    workload = load_workload(manifest)
    guest = Told('{"end": "ok"}\n', "rate: 1\nrate: 2\n")
    result = run_workload(guest, workload, {"memory": "2M"}, 7, "ns", tmp_path, 10)  # type: ignore[arg-type]
    ((argv, options),) = guest.asked
    assert argv[argv.index("--") + 1 :] == ["bench", "--size=2097152", "--seed", "7", "a b"]
    assert options["directory"] == "/work" and options["environment"]["PATH"].startswith("/work:")
    assert [(each.metric, each.unit, each.value) for each in result.observations] == [
        ("rate.mean", "MiB/s", 2.0)
    ]
    assert workload.command is not None and workload.command.files[0].path == "/work/bench"
    with pytest.raises(WorkloadFailed, match=r"nothing for the metric rate\.mean"):
        run_workload(Told('{"end": "ok"}\n'), workload, {}, 7, "ns", tmp_path, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("command =", 'program = "x"\ncommand =', "either a program or a command"),
        ("{memory}", "{memorry}", "{memorry} is not a parameter, did you mean memory"),
        ("pattern = 'rate: ([0-9.]+)'", "", "pattern: this key is missing"),
        ("([0-9.]+)", "([0-9.]+", "not a regular expression"),
    ],
)
def test_a_bad_manifest_of_a_command_is_one_clear_sentence(
    manifest: Path, old: str, new: str, sentence: str
) -> None:
    manifest.write_text(MANIFEST.replace(old, new))
    with pytest.raises(UserError) as error:
        load_workload(manifest)
    assert sentence in str(error.value) and str(manifest) in str(error.value)


def test_workloads_of_the_user_are_known_beside_those_of_the_project(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, own = ROOT / "guest_workloads", manifest.parent.parent
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert own_directories([own]) == [own]
    assert {"mine", "chunk"} <= set(known_workloads(project, [own]))
    assert "command" not in known_workloads(project)
    (tmp_path / "orchestrate" / "workloads").mkdir(parents=True)
    assert own_directories([own])[0] == tmp_path / "orchestrate" / "workloads"
    manifest.parent.rename(own / "chunk")
    (own / "chunk" / "mine.toml").rename(own / "chunk" / "chunk.toml")
    with pytest.raises(UserError, match="there is another workload chunk"):
        known_workloads(project, [own])


def test_a_file_that_is_missing_only_stops_the_workload_that_needs_it(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("bench.sh", "gone.sh"))
    known = known_workloads(ROOT / "guest_workloads", [manifest.parent.parent])
    assert known["mine"].parameters and not known["chunk"].fault
    check_parameters(known, "chunk", {})
    with pytest.raises(UserError, match=r"gone\.sh: cannot be copied into the guest") as error:
        check_parameters(known, "mine", {})
    assert str(manifest) in str(error.value)


def test_the_program_measures_the_command_from_outside(tmp_path: Path) -> None:
    program = tmp_path / "command"
    compile_workload(ROOT / "guest_workloads", "command", program)

    def told(*words: str) -> tuple[list[dict[str, Any]], str]:
        done = subprocess.run([str(program), "--clock", "ns", "--", *words], capture_output=True, text=True)
        records, fault = parse_output(done.stdout)
        assert fault is None
        return records, done.stderr

    records, printed = told("sh", "-c", "echo out; echo err >&2")
    values = {each["metric"]: each["value"] for each in records if "metric" in each}
    assert (
        set(values) == {"run_ns.sum", "cpu_ns.sum", "rss_kib.max", "faults.total"}
        and min(values.values()) >= 0
    )
    assert sorted(printed.split()) == ["err", "out"]
    for words, reason in (
        (["sh", "-c", "exit 3"], "ended with exit status 3"),
        (["sh", "-c", "kill -SEGV $$"], "was killed by signal 11"),
        (["no-such-program"], "--copy-in brings it"),
    ):
        last = told(*words)[0][-1]
        assert last["end"] == "error" and reason in last["reason"]
