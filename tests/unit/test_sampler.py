# SPDX-License-Identifier: GPL-2.0-only
"""The decoder against recorded output, and against the real program on files of this host."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from guest_data import FILES, ROOT, SAMPLER
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.guest.sampler import (
    DURING,
    PROCESSES,
    SAMPLER_METRICS,
    Decoder,
    FormatError,
    Reading,
    Sampler,
    check_monitor,
    read_files,
)
from orchestrator.guest.ssh import Finished, GuestLost


def decode(text: str) -> list[Reading]:
    readings: list[Reading] = []
    decoder = Decoder(readings.append)
    for line in text.splitlines():
        decoder.feed(line)
    return readings


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sampler") / "sampler"
    source = ROOT / "vm_images" / "guest" / "tools" / "sampler.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(path)], check=True)
    return str(path)


def test_recorded_output_becomes_whole_readings() -> None:
    readings = decode(SAMPLER)
    assert len(readings) == SAMPLER.count("\ne ") > 1
    assert [r.guest_s for r in readings] == sorted(r.guest_s for r in readings)
    for reading in readings:
        # Unchanged lines are not sent again, but they are there.
        assert set(reading.files) == set(readings[0].files)
        vmstat = reading.files["/proc/vmstat"].splitlines()
        assert len(vmstat) == len(FILES["/proc/vmstat"].splitlines())
        assert vmstat[0].startswith("nr_free_pages ")
        assert reading.cpu_ms > 0


def test_a_counter_of_the_recording_moves_as_it_was_sent() -> None:
    faults = [
        int(line.split()[1])
        for reading in decode(SAMPLER)
        for line in reading.files["/proc/vmstat"].splitlines()
        if line.startswith("pgfault ")
    ]
    assert faults == sorted(faults) and faults[-1] > faults[0]


@pytest.mark.parametrize(
    "text",
    ["x 0", "e 5", "s 1", "s a b", "s 1 1\nq 0", "s 1 1\nd 0 1", "s 1 1\ns 2 2", "s 1 1\nf 0 x", "hello",
     "s 1 1\np 0 /a\nf 0 1\none\nd 0 2", "s 1 1\np 0 /a\nf 0 1\none\nd 0 1\n7 x", "s 1 1\nf 3 1\none\ne 2"],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        decode(text)


@given(st.text())
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        decode(text)
    except FormatError as error:
        assert "an invalid line" in str(error)


LINES = st.lists(st.from_regex(r"[a-z]{0,8} [0-9]{0,3}", fullmatch=True), max_size=6)


@settings(deadline=None, max_examples=15)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_the_program_and_the_decoder_agree_on_any_file_that_changes(
    tmp_path_factory: pytest.TempPathFactory, program: str, contents: list[list[str]]
) -> None:
    """Each content is written between two samples; what arrives is what was there."""
    directory = tmp_path_factory.mktemp("changing")
    path, fifo = directory / "file", directory / "fifo"

    def write(lines: Sequence[str]) -> str:
        text = "".join(f"{line}\n" for line in lines)
        with path.open("r+" if path.exists() else "w") as stream:  # the program holds it open
            stream.write(text)
            stream.truncate()
        return text

    write(contents[0])
    arrived: list[str] = []
    condition = threading.Condition()
    ready = threading.Event()

    def on_reading(reading: Reading) -> None:
        with condition:
            arrived.append(reading.files[str(path)])
            condition.notify_all()

    process = subprocess.Popen(
        [program, "--interval-ms", "2", "--while", str(fifo), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    decoder = Decoder(on_reading, ready.set)
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            decoder.feed(line.rstrip("\n"))

    def has_arrived(text: str, after: int) -> bool:
        with condition:
            return condition.wait_for(lambda: text in arrived[after:], 10)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(10)
        with fifo.open("w") as workload:
            workload.write("x")
            workload.flush()
            for lines in contents:
                expected = write(lines)
                with condition:
                    seen = len(arrived)
                assert has_arrived(expected, after=seen)
    finally:
        process.terminate()
        reader.join(10)
        assert process.wait(10) == 0


def test_the_program_samples_only_while_a_workload_runs(program: str, tmp_path: Path) -> None:
    path, fifo = tmp_path / "file", tmp_path / "fifo"
    path.write_text("a 1\n")
    process = subprocess.Popen(
        [program, "--interval-ms", "5", "--while", str(fifo), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "r\n"
    time.sleep(0.05)
    for _ in range(2):  # it listens again after the first workload
        with fifo.open("w") as workload:
            workload.write("x")
            workload.flush()
            while not process.stdout.readline().startswith("s "):
                pass
        while process.stdout.readline() != "r\n":
            pass
    process.terminate()
    rest, _ = process.communicate(timeout=10)
    assert rest == "" and process.returncode == 0
    assert not fifo.exists()


def test_the_program_reads_all_files_of_a_pattern_once(program: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"{name} 1\nlast line without newline")
    (tmp_path / "directory").mkdir()
    done = subprocess.run(
        [program, "--once", f"{tmp_path}/*", "/none/*"], capture_output=True, text=True, check=True
    )
    (reading,) = decode(done.stdout)
    assert reading.files == {
        str(tmp_path / name): f"{name} 1\nlast line without newline\n" for name in ("a", "b", "c")
    }


def test_processes_that_start_later_are_read_and_reported_by_name(program: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    process = subprocess.Popen(
        [program, "--interval-ms", "5", "--while", str(fifo), "--processes", "/proc/loadavg"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "r\n"
    with fifo.open("w") as workload:
        later = subprocess.Popen(["sleep", "60"])
        try:
            workload.write("x")
            workload.flush()
            readings: list[Reading] = []
            decoder = Decoder(readings.append)
            named = f"/proc/{later.pid}/smaps_rollup sleep"
            while not any(named in reading.files for reading in readings):
                decoder.feed(process.stdout.readline().rstrip("\n"))
        finally:
            later.kill()
            later.wait()
    process.terminate()
    process.communicate(timeout=10)
    assert "Pss:" in readings[-1].files[named]
    # What was there before, this test among it, is nobody's workload.
    assert not any(path.startswith(f"/proc/{os.getpid()}/") for path in readings[-1].files)


class StoppedRemote:
    def __init__(self, on_stop: Callable[[], None], killed: bool) -> None:
        self._on_stop = on_stop
        self._signal = "SIGKILL" if killed else "SIGTERM"

    def stop(self) -> Finished:
        self._on_stop()
        return Finished(("sampler",), None, self._signal, "", "no such program", 0.0)


class RecordedGuest:
    """Answers as the recorded guest did."""

    alive = True

    def __init__(self, text: str = SAMPLER, lost_at_stop: bool = False, killed: bool = False) -> None:
        self._text = text
        self._killed = killed
        self._lost_at_stop = lost_at_stop
        self.spawned: list[list[str]] = []

    def run(self, argv: list[str], **options: Any) -> Finished:
        text = "".join(
            f"p {i} {path}\nf {i} {len(content.splitlines())}\n{content}"
            for i, (path, content) in enumerate(FILES.items())
            if content.endswith("\n")
        )
        return Finished(tuple(argv), 0, None, f"s 1000000000 0\n{text}e 2000000\n", "", 0.0)

    def spawn(self, argv: list[str], *, on_line: Callable[[str], None]) -> StoppedRemote:
        self.spawned.append(argv)
        for line in self._text.splitlines():
            on_line(line)
        return StoppedRemote(self._stopped, self._killed)

    def _stopped(self) -> None:
        if self._lost_at_stop:
            raise GuestLost("gone")


def sampled(guest: RecordedGuest, interval_ms: int = 20) -> Sampler:
    sampler = Sampler(guest, interval_ms)  # type: ignore[arg-type]
    sampler.before()
    sampler.start()
    sampler.stop()
    sampler.after()
    return sampler


def test_samples_have_phase_times_and_nodes() -> None:
    began = time.time()
    sampler = sampled(RecordedGuest())
    phases = [sample.phase for sample in sampler.samples]
    assert phases == sorted(phases, key=["before", "during", "after"].index)
    assert {sample.node for sample in sampler.samples} == {None, 0, 1, 2, 3}
    assert all(began <= sample.host_s <= time.time() for sample in sampler.samples)
    (first, *_) = sampler.samples
    assert first.guest_s == 1.0
    # The edges read more files than are read meanwhile.
    assert "buddyinfo" in {s.source for s in sampler.samples if s.phase == "after"}
    assert "buddyinfo" not in {s.source for s in sampler.samples if s.phase == "during"}


def test_its_own_cost_is_reported() -> None:
    sampler = sampled(RecordedGuest())
    observed = {o.metric: o.value for o in sampler.observations()}
    assert set(observed) == set(SAMPLER_METRICS)
    assert observed["samples.total"] == len(decode(SAMPLER))
    assert observed["sampler_ms.sum"] == pytest.approx(sum(r.cpu_ms for r in decode(SAMPLER)))


def test_without_an_interval_only_the_edges_are_read() -> None:
    guest = RecordedGuest()
    assert {s.phase for s in sampled(guest, 0).samples} == {"before", "after"}
    assert guest.spawned == []


def test_extra_files_are_read_as_well() -> None:
    guest = RecordedGuest()
    sampler = Sampler(guest, 20, ["/sys/fs/cgroup/job/memory.stat"])  # type: ignore[arg-type]
    sampler.start()
    assert guest.spawned[0][-len(DURING) - 1 :] == [*DURING, "/sys/fs/cgroup/job/memory.stat"]


def test_a_guest_lost_at_the_end_keeps_the_samples_and_hides_no_other_end() -> None:
    sampler = Sampler(RecordedGuest(lost_at_stop=True), 20)  # type: ignore[arg-type]
    sampler.start()
    sampler.stop()
    assert len({s.guest_s for s in sampler.samples}) == len(decode(SAMPLER))


def test_a_sampler_that_ended_too_early_is_reported() -> None:
    """A peak is missing then, and nobody would know."""
    with pytest.raises(InfrastructureError, match="sampler ended prematurely: signal SIGKILL"):
        sampled(RecordedGuest(killed=True))


def test_a_program_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.guest.sampler._READY_TIMEOUT_S", 0.01)
    sampler = Sampler(RecordedGuest(text=""), 20)  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError, match="no such program"):
        sampler.start()


def test_read_files_wants_exactly_one_reading() -> None:
    class Silent(RecordedGuest):
        def run(self, argv: list[str], **options: Any) -> Finished:
            return Finished(tuple(argv), 0, None, "", "", 0.0)

    with pytest.raises(FormatError, match="0 readings"):
        read_files(Silent(), ["/proc/vmstat"])  # type: ignore[arg-type]


def test_what_the_guest_does_not_have_cannot_be_sampled() -> None:
    Sampler(RecordedGuest(), 0, ["/proc/vmst*"]).before()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--sample psi: the guest's kernel has no file /proc/pressure/\*"):
        Sampler(RecordedGuest(), 0, ["psi"]).before()  # type: ignore[arg-type]


def test_monitors_are_named_or_paths() -> None:
    assert [check_monitor(each) for each in ("slabinfo", PROCESSES, "/proc/stat")]
    with pytest.raises(UserError, match="--sample slabinf: did you mean slabinfo"):
        check_monitor("slabinf")
