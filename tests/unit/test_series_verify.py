# SPDX-License-Identifier: GPL-2.0-only
"""A series is verified stage by stage: each kind of mistake is found, at its stage, and by the check it is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tree import FILES, git
from guest_data import ROOT
from records import MANIFEST

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.execution.bench import Bench
from orchestrator.execution.verify import run as series_verification
from orchestrator.execution.verify.answer import CHECKS, StageReport, State
from orchestrator.execution.verify.inventory import Inventory, KnobFacts
from orchestrator.execution.verify.report import table
from orchestrator.execution.verify.request import VerificationRequest
from orchestrator.execution.verify.run import SeriesVerification, wrong_names
from orchestrator.kernel.build import KernelBuild
from orchestrator.kernel.series import load_series
from orchestrator.kernel.sparse import new_findings, parse_findings
from orchestrator.kernel.stage_change import last_change
from orchestrator.project import Project

_MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
S := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))/
flags = -Wall -Werror=implicit-function-declaration -I$(S)include \\
	$(shell sed -n 's/^\\(CONFIG_[A-Z_]*\\)=y/-D\\1/p' $(O)/.config)
all := $(shell sed -n 's/^obj-y := //p' $(S)mm/Makefile)
ifneq ($(shell grep CONFIG_NUMA=y $(O)/.config 2>/dev/null),)
all += $(shell sed -n 's/^obj-$$(CONFIG_NUMA) += //p' $(S)mm/Makefile)
endif

target := $(if $(W),-Wextra) $(if $(filter i386,$(ARCH)),-m32) $(if $(CROSS_COMPILE),-DCROSS)

allnoconfig:
	cp $(KCONFIG_ALLCONFIG) $(O)/.config
olddefconfig: ;
bzImage: $(addprefix mm/,$(all))
	gcc -Wl,--build-id -o $(O)/vmlinux $(addprefix $(O)/mm/,$(all))
	mkdir -p $(O)/arch/x86/boot $(O)/include/config
	cp $(O)/vmlinux $(O)/arch/x86/boot/bzImage
	echo 6.12 >$(O)/include/config/kernel.release
mm/: $(addprefix mm/,$(all))
.PHONY: mm/ mm/%.o
mm/%.o: FORCE
	@echo '  CC      $@'; mkdir -p $(O)/mm; cd $(O); $(CC) $(flags) $(target) -c -o $@ $(S)mm/$*.c
	@$(if $(C),echo '  CHECK   $(S)mm/$*.c'; $(CHECK) $(flags) $(S)mm/$*.c)
FORCE:
"""
_HEADER = """\
#ifdef CONFIG_NUMA
int far_node(void);
static inline int node(void) { return 1; }
#endif
int main(void);
int own(void);
"""
_MEMORY = """\
#include <linux/mm.h>
int old_symbol;

int main(void)
{
	int old_warning;
	return 0;
}
"""
#: Says of a patch with a line "BAD STYLE" what the real one would say, in its form.
_CHECKPATCH = r"""
my ($patch) = grep { !/^--/ } @ARGV;
open(my $in, '<', $patch) or die;
my $bad = grep { /^\+.*BAD STYLE/ } <$in>;
print "CHECK:STYLE: this is bad style\n#1: FILE: mm/memory.c:1:\n+BAD STYLE\n\n" if $bad;
print "total: 0 errors, 0 warnings, ${bad} checks, 10 lines checked\n";
exit($bad ? 1 : 0);
"""
#: Like the tree's own program: names what is documented and not there.
_KERNEL_DOC = """\
#!/bin/sh
shift
grep -n '@[a-z]*:' "$@" /dev/null | sed -E 's/^([^:]+:[0-9]+):.*@([a-z]+):.*/\\1 warning: Excess parameter \\2/' >&2
"""
_TREE = {
    **FILES,
    "Makefile": _MAKEFILE,
    "Kbuild": "obj-y += mm/\n",
    "mm/Makefile": "obj-y := memory.o\nobj-$(CONFIG_NUMA) += numa.o\n",
    "mm/memory.c": _MEMORY,
    "mm/numa.c": "#include <linux/mm.h>\nint far_node(void) { return 2; }\n",
    "include/linux/mm.h": _HEADER,
    "scripts/checkpatch.pl": _CHECKPATCH,
    "scripts/kernel-doc": _KERNEL_DOC,
}
_HARMLESS = _MEMORY.replace("return 0;", "return 1;")
#: Stages as the files they write; what is asked of a bad one stands in place of one of them.
_GOOD: Sequence[Mapping[str, str]] = (
    {"mm/memory.c": _HARMLESS},
    {"mm/memory.c": _HARMLESS.replace("return 1;", "return 2;")},
    {"mm/memory.c": _HARMLESS.replace("return 1;", "return 3;")},
)
_SERIES = """\
schema = 2
name = "fake"
title = "mm: a fake series"
groups = ["core-only", "threshold"]
linux = "6.12"
package = "linux-source-6.12"
directory = "6.12"

[[base]]
version = "6.12.117-1"

[[stage]]
number = 1
name = "counters"
group = "core-only"
patch = "0001.patch"
title = "mm: 1"
knobs = []
counters = ["nr_thp_reserved"]

[[stage]]
number = 2
name = "knob"
group = "core-only"
patch = "0002.patch"
title = "mm: 2"
knobs = ["promotion_threshold"]
counters = []

[[stage]]
number = 3
name = "default"
group = "threshold"
patch = "0003.patch"
title = "mm: 3"
knobs = []
counters = []
defaults = { promotion_threshold = 256 }

[[knob]]
name = "promotion_threshold"
path = "/sys/kernel/mm/transparent_hugepage/promotion_threshold"
kind = "integer"
minimum = 1
maximum = 512
default = 1
help = "Pages."
"""
_DIRECTORY = "/sys/kernel/mm/transparent_hugepage"
_KNOB = f"{_DIRECTORY}/promotion_threshold"


def good_inventory(number: int) -> Inventory:
    """What a guest of the first `number` stages has to have."""
    return Inventory(
        boot="",
        smoke=[],
        counters=["nr_free_pages", *(["nr_thp_reserved"] if number >= 1 else [])],
        files=[f"{_DIRECTORY}/enabled", *([_KNOB] if number >= 2 else [])],
        knobs={"promotion_threshold": KnobFacts("256" if number >= 3 else "1")} if number >= 2 else {},
    )


class _Bench(Bench):
    """A bench without image and QEMU."""

    @property
    def image(self) -> Any:
        return SimpleNamespace(digest="an image")

    @property
    def accelerator(self) -> Any:
        return SimpleNamespace(name="tcg", clock="ns", record=MANIFEST.accelerator)


class Laboratory:
    """A fake tree, a series whose stages a test writes, and guests that have what it says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[Event] = []
        self.booted: list[int] = []
        self.guests = {number: good_inventory(number) for number in range(4)}
        self.interrupt_at: int | None = None
        (root / "vm_images" / "kernel").mkdir(parents=True)
        for name, text in (
            ("base", "CONFIG_NUMA=y\nCONFIG_TRANSPARENT_HUGEPAGE=y\nCONFIG_MEMCG=y\n"),
            ("measure", ""),
            ("dwarf", ""),
        ):
            (root / "vm_images" / "kernel" / f"{name}.config").write_text(text)
        for name, text in _TREE.items():
            path = root / "linux" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (root / "linux" / "scripts" / "kernel-doc").chmod(0o755)
        git(root / "linux", "init", "-q")
        git(root / "linux", "add", "-Af")
        git(root / "linux", "commit", "-qm", "Linux")
        self.write(_GOOD)

    def write(self, stages: Sequence[Mapping[str, str]]) -> None:
        """Write the patches, by committing what each stage changes."""
        patches = self.root / "kernel_patches" / "6.12"
        patches.mkdir(parents=True, exist_ok=True)
        (patches.parent / "series.toml").write_text(_SERIES)
        work = self.root / "work"
        if not work.exists():
            git(self.root, "clone", "-q", str(self.root / "linux"), str(work))
        git(work, "reset", "-q", "--hard", "origin/HEAD")
        for number, files in enumerate(stages, 1):
            for name, text in files.items():
                (work / name).write_text(text)
            git(work, "add", "-Af")
            git(work, "commit", "-qm", f"mm: {number}")
            (patches / f"{number:04}.patch").write_text(git(work, "format-patch", "-1", "--stdout") + "\n")

    def replace_stage(self, number: int, files: Mapping[str, str]) -> None:
        self.write([*_GOOD[: number - 1], files, *_GOOD[number:]])

    def bench(self) -> Bench:
        events = Events(self.seen.append)
        return _Bench(Project(self.root), Cache(self.root / "cache"), events, str(self.root / "linux"))

    def inventory(self, numbers: Mapping[str, int], kernel: KernelBuild) -> Inventory:
        number = numbers[kernel.digest]
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        self.booted.append(number)
        return self.guests[number]

    def verify(self, checks: Sequence[str] = CHECKS) -> list[StageReport]:
        bench = self.bench()
        numbers: dict[str, int] = {}

        def boot(kernel: KernelBuild, logs: Path) -> Inventory:
            # Which stage a kernel is of is known by its digest, as in the cache.
            for number in range(4):
                patchset = f"stage-{number}" if number else "baseline"
                if kernel.digest not in numbers and bench.has_kernel(patchset):
                    numbers[bench.kernel(patchset).digest] = number
            return self.inventory(numbers, kernel)

        verification = SeriesVerification(bench, checks, inventory_of=boot)
        return list(verification.verify(verification.series.stages))


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path)


def failures(reports: Sequence[StageReport]) -> dict[int, list[str]]:
    return {
        report.stage.number: [name for name, a in report.answers.items() if a.state is State.FAILED]
        for report in reports
        if report.failed
    }


def test_a_good_series_passes_every_check(laboratory: Laboratory) -> None:
    reports = laboratory.verify()
    assert failures(reports) == {}
    for report in reports:
        assert set(report.answers) == set(CHECKS)
        assert {answer.state for answer in report.answers.values()} == {State.OK}


def test_a_stage_that_does_not_apply(laboratory: Laboratory) -> None:
    patch = laboratory.root / "kernel_patches" / "6.12" / "0002.patch"
    patch.write_text(patch.read_text().replace("-\treturn 1;", "-\treturn 99;"))
    reports = laboratory.verify(["applies", "checkpatch"])
    assert failures(reports) == {2: ["applies"], 3: ["applies"]}
    assert "mm/memory.c" in reports[1].answers["applies"].detail
    assert reports[2].answers["applies"].detail.startswith("an earlier one does not: stage 2 (knob)")
    assert reports[1].answers["checkpatch"].state is State.NOT_MADE


@pytest.mark.parametrize(
    ("check", "old", "new", "said"),
    [
        ("checkpatch", "return 2;", "return 2; /* BAD STYLE */", "this is bad style"),
        ("build", "return 2;", "return 2; int fresh_warning;", "unused variable 'fresh_warning'"),
        ("build", "return 2;", "return nowhere;", "'nowhere' undeclared"),
        ("NUMA=n", "return 2;", "return node();", "implicit declaration of function 'node'"),
        ("sparse", "return 2;", "return nowhere;", "it does not compile"),
        ("sparse", "int old_symbol;", "int old_symbol; int new_symbol;", "symbol 'new_symbol'"),
    ],
)
def test_a_mistake_is_found_at_its_stage_by_the_check_it_is_for(
    laboratory: Laboratory, check: str, old: str, new: str, said: str
) -> None:
    good = _GOOD[1]["mm/memory.c"]
    laboratory.replace_stage(2, {"mm/memory.c": good.replace(old, new)})
    reports = laboratory.verify([check])
    assert failures(reports) == {2: [check]}
    answer = reports[1].answers[check]
    assert said in answer.detail
    # What was there before is not held against a stage; an error has the lines around it.
    assert "old_" not in answer.detail or "error: " in answer.detail
    assert answer.log is None or answer.log.is_file()


@pytest.mark.parametrize(
    ("check", "option"), [("THP=n", "CONFIG_TRANSPARENT_HUGEPAGE"), ("MEMCG=n", "CONFIG_MEMCG")]
)
def test_a_warning_that_only_an_option_hides(laboratory: Laboratory, check: str, option: str) -> None:
    line = f"return 2;\n#ifndef {option}\n\tint fresh_warning;\n#endif"
    laboratory.replace_stage(2, {"mm/memory.c": _GOOD[1]["mm/memory.c"].replace("return 2;", line)})
    reports = laboratory.verify(["build", "THP=n", "NUMA=n", "MEMCG=n"])
    assert failures(reports) == {2: [check]}
    assert reports[1].answers[check].detail.count("\n") == 0


@pytest.mark.parametrize(
    ("check", "line", "said"),
    [
        ("W=1", "return 2 + (1u > -1);", "comparison of integer expressions of different signedness"),
        ("i386", "return 2 / (sizeof(long) == 8);", "division by zero"),
        ("KSM=n", "return 2;\n#ifndef CONFIG_KSM\n\tint fresh_warning;\n#endif", "fresh_warning"),
        ("kernel-doc", "return 2; /* @nobody: not there */", "Excess parameter nobody"),
    ],
)
def test_a_check_that_was_asked_for_finds_what_no_other_does(
    laboratory: Laboratory, check: str, line: str, said: str
) -> None:
    fragment = laboratory.root / "vm_images" / "kernel" / "base.config"
    fragment.write_text(fragment.read_text() + "CONFIG_KSM=y\n")
    laboratory.replace_stage(2, {"mm/memory.c": _GOOD[1]["mm/memory.c"].replace("return 2;", line)})
    reports = laboratory.verify(["build", "NUMA=n", check])
    assert failures(reports) == {2: [check]}
    detail = reports[1].answers[check].detail
    assert said in detail and "old_warning" not in detail


def test_a_compiler_that_is_missing_is_named_before_anything_is_built(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "powerpc64le-linux-gnu-gcc"
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(InfrastructureError, match="install the Debian package gcc-powerpc64le-linux-gnu"):
        laboratory.verify(["build", "powerpc64le"])


def test_options_to_switch_take_the_place_of_the_usual_ones() -> None:
    def asked(**given: Sequence[str]) -> tuple[str, ...]:
        return VerificationRequest.parse(
            (), given.pop("checks", ()), "1x512M", load_series(ROOT / "kernel_patches"), **given
        ).checks

    assert asked() == tuple(CHECKS)
    assert asked(without=["KSM,SWAP", "CONFIG_NUMA"], also=["i386", "kernel-doc"]) == (
        "applies", "checkpatch", "build", "NUMA=n", "KSM=n", "SWAP=n", "kernel-doc", "i386", "sparse", "boots",
        "smoke", "names",
    )  # fmt: skip
    assert asked(checks=["build"], also=["W=1"]) == ("build", "W=1")
    for given, sentence in (
        ({"also": ["i368"]}, "did you mean i386"),
        ({"without": ["ksm"]}, "name of an option"),
    ):
        with pytest.raises(UserError, match=sentence):
            asked(**given)


def test_a_table_has_a_column_for_each_check_that_was_made(laboratory: Laboratory) -> None:
    reports = laboratory.verify(["build", "KSM=n"])
    head = table({"stages": [report.to_json() for report in reports]}, 200).splitlines()[0]
    assert "KSM=n" in head.split() and "i386" not in head.split()


def test_a_function_that_is_not_there_without_the_option_is_missed_at_link_time(
    laboratory: Laboratory,
) -> None:
    laboratory.replace_stage(
        2,
        {
            "mm/own.c": "#include <linux/mm.h>\nint own(void) { return 3; }\n",
            "mm/Makefile": "obj-y := memory.o\nobj-$(CONFIG_NUMA) += numa.o\nobj-$(CONFIG_NUMA) += own.o\n",
            "mm/memory.c": _GOOD[1]["mm/memory.c"].replace("return 2;", "return own();"),
        },
    )
    reports = laboratory.verify(["build", "THP=n", "NUMA=n"])
    # Stage 3 takes the call out again.
    assert failures(reports) == {2: ["NUMA=n"]}
    assert reports[1].answers["NUMA=n"].detail == "mm/memory.o: undefined reference to `own'"


def test_a_file_outside_of_the_series_that_uses_what_a_stage_removes_is_compiled_too(
    laboratory: Laboratory,
) -> None:
    lines = ["#include <linux/mm.h>", "#ifndef CONFIG_MEMCG", "int stray(void);"]
    stray = "\n".join([*lines, "int stray(void) { return old_name(); }", "#endif", ""])
    for name, text in {
        "mm/stray.c": stray,
        # It has the name as well, but is no part of a kernel: kbuild never looks at its Makefile.
        "tools/tool.c": "int old_name(void);\n",
        "tools/Makefile": "$(error this is for another make)\n",
        "mm/Makefile": "obj-y := memory.o stray.o\nobj-$(CONFIG_NUMA) += numa.o\n",
        "include/linux/mm.h": f"{_HEADER}static inline int old_name(void) {{ return 0; }}\n",
    }.items():
        (laboratory.root / "linux" / name).parent.mkdir(exist_ok=True)
        (laboratory.root / "linux" / name).write_text(text)
    git(laboratory.root / "linux", "add", "-Af")
    git(laboratory.root / "linux", "commit", "-qm", "Linux")
    git(laboratory.root / "work", "fetch", "-q")
    laboratory.replace_stage(2, {"include/linux/mm.h": _HEADER})
    reports = laboratory.verify(["build", "THP=n", "MEMCG=n"])
    assert failures(reports)[2] == ["MEMCG=n"]
    assert "mm/stray.c" in reports[1].answers["MEMCG=n"].detail


def test_what_a_stage_does_to_a_header_is_known_by_name(laboratory: Laboratory) -> None:
    header = _HEADER.replace("static inline int node", "static int node")
    header += "#define MACRO(x) (x)\nenum kind {\n\tFIRST,\n\tLAST = 9,\n};\n"
    header += (
        "static inline int added(int value)\n{\n\tif (value)\n\t\treturn used_only(value);\n\treturn 0;\n}\n"
    )
    laboratory.replace_stage(2, {"include/linux/mm.h": header})
    change = last_change(laboratory.bench().tree("stage-2"))
    assert change.headers == ("include/linux/mm.h",) and change.sources == ()
    assert change.names == ("FIRST", "LAST", "MACRO", "added", "kind", "node")


@pytest.mark.parametrize(
    ("check", "bad", "said"),
    [
        ("boots", replace(good_inventory(2), boot="Kernel panic - not syncing"), "Kernel panic"),
        ("smoke", replace(good_inventory(2), smoke=["workload touch: page 7 is not zero"]), "page 7"),
        (
            "names",
            replace(good_inventory(2), counters=["nr_free_pages"]),
            "nr_thp_reserved of stage 1 is missing",
        ),
    ],
)
def test_a_guest_that_is_not_as_it_should_be(
    laboratory: Laboratory, check: str, bad: Inventory, said: str
) -> None:
    laboratory.guests[2] = bad
    reports = laboratory.verify(["boots", "smoke", "names"])
    assert failures(reports) == {2: [check]}
    assert said in reports[1].answers[check].detail


def test_without_a_boot_nothing_else_is_reported_of_the_guest(laboratory: Laboratory) -> None:
    laboratory.guests[2] = replace(good_inventory(2), boot="hung")
    answers = laboratory.verify(["boots", "smoke", "names"])[1].answers
    assert answers["smoke"].state is answers["names"].state is State.NOT_MADE


@pytest.mark.parametrize("check", ["boots", "smoke", "names"])
def test_what_keeps_a_check_from_being_made_is_a_failure_too(laboratory: Laboratory, check: str) -> None:
    laboratory.guests[1] = replace(good_inventory(1), boot="hung")
    laboratory.replace_stage(2, {"mm/memory.c": "broken\n"})
    assert failures(laboratory.verify([check])) == {1: ["boots"], 2: ["build"]}


def test_a_kernel_that_does_not_build_is_not_booted(laboratory: Laboratory) -> None:
    laboratory.replace_stage(2, {"mm/memory.c": "broken\n"})
    answers = laboratory.verify()[1].answers
    assert answers["build"].state is State.FAILED
    assert answers["boots"].state is State.NOT_MADE
    assert 2 not in laboratory.booted


@pytest.mark.parametrize(
    ("number", "change", "fault"),
    [
        (1, {"files": [f"{_DIRECTORY}/enabled", _KNOB]}, f"knob {_KNOB} exists before its stage 2"),
        (
            1,
            {"counters": ["nr_free_pages", "nr_thp_reserved", "x"]},
            "counter x exists, but is not in series.toml",
        ),
        (1, {"counters": ["nr_thp_reserved"]}, "counter nr_free_pages of the baseline is missing"),
        (2, {"files": [f"{_DIRECTORY}/enabled"]}, f"knob {_KNOB} of stage 2 is missing"),
        (2, {"knobs": {"promotion_threshold": KnobFacts("256")}}, "is 256 after boot, but 1 in series.toml"),
        (3, {"knobs": {"promotion_threshold": KnobFacts("1")}}, "is 1 after boot, but 256 in series.toml"),
        (
            3,
            {"knobs": {"promotion_threshold": KnobFacts("256", ("promotion_threshold takes 513",))}},
            "promotion_threshold takes 513",
        ),
    ],
)
def test_names_and_defaults_are_those_of_the_series(
    laboratory: Laboratory, number: int, change: Mapping[str, Any], fault: str
) -> None:
    series = load_series(laboratory.root / "kernel_patches")
    stage = series.stages[number - 1]
    stock, good = good_inventory(0), good_inventory(number)
    assert wrong_names(series, stage, stock, good) == []
    (said,) = wrong_names(series, stage, stock, replace(good, **change))
    assert fault in said


def test_what_was_answered_is_not_asked_again(laboratory: Laboratory) -> None:
    laboratory.verify()
    assert laboratory.booted == [0, 1, 2, 3]
    laboratory.seen.clear()
    assert failures(laboratory.verify()) == {}
    assert laboratory.booted == [0, 1, 2, 3]
    started = {event.step[0] for event in laboratory.seen if event.kind == "start"}
    assert all(name == "verify" or name.startswith("stage ") for name in started)


def test_a_changed_stage_is_looked_at_again_and_those_before_it_are_not(laboratory: Laboratory) -> None:
    laboratory.verify()
    laboratory.booted.clear()
    laboratory.replace_stage(3, {"mm/memory.c": _HARMLESS.replace("return 1;", "return 33;")})
    laboratory.verify()
    assert laboratory.booted == [3]


def test_an_interrupted_verification_goes_on(laboratory: Laboratory) -> None:
    laboratory.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        laboratory.verify()
    laboratory.interrupt_at = None
    assert failures(laboratory.verify()) == {}
    assert laboratory.booted == [0, 1, 2, 3]


def test_a_guest_that_failed_is_booted_again(laboratory: Laboratory) -> None:
    laboratory.guests[3] = replace(good_inventory(3), smoke=["the host was slow"])
    assert failures(laboratory.verify(["boots", "smoke"])) == {3: ["smoke"]}
    laboratory.guests[3] = good_inventory(3)
    assert failures(laboratory.verify(["boots", "smoke"])) == {}


def test_findings_are_compared_by_text_and_count() -> None:
    before = parse_findings(["  CHECK   mm/a.c", "mm/a.c:3:1: warning: imbalance", "a line of make"])
    after = parse_findings(
        ["  CHECK   mm/a.c", "mm/a.c:9:1: warning: imbalance", "mm/a.c:12:1: warning: imbalance"]
    )
    assert new_findings(before, after) == ["mm/a.c:12:1: warning: imbalance"]
    assert new_findings(after, before) == []
    assert new_findings({}, before) == ["mm/a.c:3:1: warning: imbalance"]


@pytest.fixture
def shell(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(laboratory.root))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(laboratory.root / "cache"))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(laboratory.root / "results"))
    monkeypatch.setattr("orchestrator.execution.bench.Bench", _Bench)

    def boot(bench: Bench, kernel: KernelBuild, *_: object) -> Inventory:
        numbers = {
            bench.kernel(f"stage-{number}" if number else "baseline").digest: number
            for number in range(4)
            if bench.has_kernel(f"stage-{number}" if number else "baseline")
        }
        return laboratory.inventory(numbers, kernel)

    monkeypatch.setattr(series_verification, "take_inventory", boot)
    return laboratory


def only_run(laboratory: Laboratory) -> Path:
    (path,) = (laboratory.root / "results").glob("*/run.json")
    return path.parent


def verify_command(laboratory: Laboratory, *arguments: str) -> int:
    return status_of(["series", "verify", "--source", str(laboratory.root / "linux"), *arguments])


def test_the_command_prints_a_table_and_its_progress(
    shell: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_command(shell, "--only", "checkpatch", "--only", "boots") == 0
    said = capsys.readouterr()
    head, *rows = said.out.splitlines()
    assert head.split() == ["stage", *CHECKS]
    assert rows[0].split() == ["1", "counters", "ok", "ok", *"-----", "ok", "-", "-"]
    assert rows[-2] == "9 ok, 0 failed, 21 not run."
    assert rows[-1] == f"run      {only_run(shell)}"
    lines = [line for line in said.err.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in lines] == [f"[{number}/9" for number in range(1, 10)]
    assert lines[0].startswith("[1/9] stage 1 (counters) applies ok ") and lines[0].endswith(" left")
    assert lines[1].startswith("[2/9] stage 1 (counters) checkpatch ok ")
    assert lines[8].startswith("[9/9] stage 3 ") and "boots ok" in lines[8] and "left" not in lines[8]
    assert "verify: 9 checks, about 2 min if nothing is in the cache (a guess)\n" in said.err


def test_what_cannot_be_checked_is_not_counted(shell: Laboratory, capsys: pytest.CaptureFixture[str]) -> None:
    patch = shell.root / "kernel_patches" / "6.12" / "0002.patch"
    patch.write_text(patch.read_text().replace("-\treturn 1;", "-\treturn 99;"))
    assert verify_command(shell, "--only", "checkpatch") == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in lines] == ["[1/6", "[2/6", "[3/5", "[4/4"]
    assert lines[2].startswith("[3/5] stage 2 (knob) applies FAILED ") and "stage 2" in lines[3]
    assert "left" not in lines[3].rpartition(", ")[2]


def test_the_command_shows_what_failed_and_ends_with_3(
    shell: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.guests[2] = replace(good_inventory(2), smoke=["workload touch: page 7 is not zero"])
    assert verify_command(shell, "--stage", "knob") == 3
    out = capsys.readouterr().out
    assert "stage 2 (knob): smoke:\n    workload touch: page 7 is not zero\n" in out
    assert "1 counters" not in out


def test_the_command_speaks_json(shell: Laboratory, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_command(shell, "--json", "--stage", "2", "--only", "names") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    (stage,) = answer["stages"]
    assert stage["number"] == 2 and stage["checks"]["names"]["state"] == "ok"
    assert stage["checks"]["sparse"] == {"state": "-", "detail": "", "log": None}


def test_an_interrupted_command_keeps_and_prints_what_it_has(
    shell: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.interrupt_at = 2
    assert verify_command(shell, "--only", "boots") == 130
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].startswith(" 1 counters") and not any("2 knob" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stage", "99"], "--stage 99: unknown stage; the stages are 1 (counters)"),
        (["--only", "luck"], "--only luck: unknown check; there are applies"),
        (["--topology", "four"], "four"),
        (["--config", "fast"], "measure"),
    ],
)
def test_bad_requests_are_refused(
    shell: Laboratory, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_command(shell, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not shell.booted
