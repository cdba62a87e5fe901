# SPDX-License-Identifier: GPL-2.0-only
"""Set-up on hosts that lack something: scripts/setup and the launcher, with fakes of the programs they start."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import orchestrator

ROOT = Path(__file__).resolve().parents[2]
#: Programs of the host that the scripts need; everything else of it is out of their sight.
REAL = (
    "basename", "cat", "cut", "dirname", "env", "find", "flock", "grep", "head", "id", "kill", "ls", "mkdir", "mktemp",
    "mv", "readlink", "rm", "sed", "sh", "sha256sum", "sleep", "tail", "touch", "tr",
)  # fmt: skip

PYTHON = """
case "$*" in
"-c import ensurepip") ;;
"-m venv "*)
	mkdir -p "$3/bin"
	printf '#!/bin/sh\\ncp {uv} "$(dirname "$0")/uv"\\n' >"$3/bin/pip"
	chmod +x "$3/bin/pip" ;;
esac
"""

UV = """
case "$*" in
"venv "*)
	for last in "$@"; do :; done
	mkdir -p "$last/bin" "$last/lib/python3.11/site-packages"
	cp {launched} "$last/bin/python" ;;
"pip sync "*)
	[ ! -e {broken_index} ] || exit 1
	touch "$(dirname "$5")/../lib/python3.11/site-packages/rich" ;;
"pip install "*) touch "$(dirname "$6")/../lib/python3.11/site-packages/orchestrate.pth" ;;
esac
"""


@dataclass
class BareHost:
    """A clone of the project on a host that has just what a test gives it."""

    place: Path
    clone: Path

    @property
    def programs(self) -> Path:
        return self.place / "bin"

    @property
    def log(self) -> list[str]:
        log = self.place / "log"
        return log.read_text().splitlines() if log.exists() else []

    def has(self, name: str, body: str = "") -> Path:
        """A program that logs how it was called, then does what `body` says."""
        path = self.programs / name
        return self.write(path, f'echo "{name} $*" >>{self.place / "log"}\n{body}')

    def write(self, path: Path, body: str) -> Path:
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    @property
    def surroundings(self) -> dict[str, str]:
        return {
            "PATH": str(self.programs),
            "HOME": str(self.place / "home"),
            "TMPDIR": str(self.place),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        (self.place / "log").unlink(missing_ok=True)
        command = [str(self.clone / words[0]), *words[1:]]
        return subprocess.run(command, env=self.surroundings, text=True, capture_output=True, check=False)

    def started(self, name: str) -> bool:
        return any(line.startswith(f"{name} ") for line in self.log)

    @property
    def made_environment(self) -> bool:
        return any(line.startswith("uv pip sync") for line in self.log)


@pytest.fixture
def host(tmp_path: Path) -> BareHost:
    host = BareHost(tmp_path, tmp_path / "clone")
    host.programs.mkdir()
    (tmp_path / "home").mkdir()
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, host.clone / name)
    for name in ("orchestrate", "pyproject.toml"):
        shutil.copy2(ROOT / name, host.clone / name)
    for name in (*REAL, "cp", "chmod", "printf"):
        real = shutil.which(name)
        assert real, name
        (host.programs / name).symlink_to(real)
    launched = host.write(tmp_path / "python-of-environment", f'echo "launched $*" >>{tmp_path / "log"}')
    uv = host.write(
        tmp_path / "uv",
        f'echo "uv $*" >>{tmp_path / "log"}\n'
        + UV.format(launched=launched, broken_index=tmp_path / "index-is-broken"),
    )
    host.write(tmp_path / "real-python", f'echo "python3 $*" >>{tmp_path / "log"}\n' + PYTHON.format(uv=uv))
    (host.programs / "python3").symlink_to(tmp_path / "real-python")
    return host


@pytest.fixture
def debian(host: BareHost) -> BareHost:
    """Root on a Debian host that has every package."""
    host.has("dpkg-query", 'shift 2; for each in "$@"; do echo "<installed $each>"; done')
    host.has("apt-get")
    (host.programs / "id").unlink()
    host.has("id", "echo 0")
    return host


def lacks(host: BareHost, package: str) -> None:
    # dpkg lists packages that it only knows of as well.
    listed = f'[ "$each" = {package} ] && echo "<not-installed $each>" || echo "<installed $each>"'
    host.has("dpkg-query", f'shift 2; for each in "$@"; do {listed}; done')


def is_not_root(host: BareHost) -> None:
    (host.programs / "id").unlink()
    host.has("id", "echo 1000")


def test_the_second_call_changes_nothing(debian: BareHost) -> None:
    assert debian.run("scripts/setup").returncode == 0
    assert debian.made_environment
    again = debian.run("scripts/setup")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not debian.made_environment
    assert not debian.started("apt-get")


def test_every_package_is_installed_with_its_hash(debian: BareHost) -> None:
    debian.run("scripts/setup")
    (sync,) = [line for line in debian.log if line.startswith("uv pip sync")]
    assert "--require-hashes" in sync
    (project,) = [line for line in debian.log if line.startswith("uv pip install")]
    assert "--offline" in project
    assert "--no-deps" in project


@pytest.mark.parametrize("damage", ["package", "moved", "python", "lock", "interpreter", "stamp"])
def test_what_is_broken_is_made_again(debian: BareHost, damage: str) -> None:
    debian.run("scripts/setup")
    match damage:
        case "package":
            (debian.clone / ".venv/lib/python3.11/site-packages/rich").unlink()
        case "moved":
            debian.clone = debian.clone.rename(debian.place / "elsewhere")
        case "python":
            shutil.copy2(debian.place / "real-python", debian.place / "newer-python")
            (debian.programs / "python3").unlink()
            (debian.programs / "python3").symlink_to(debian.place / "newer-python")
        case "lock":
            with (debian.clone / "requirements/run.txt").open("a") as lock:
                lock.write("# changed\n")
        case "interpreter":
            (debian.clone / ".venv/bin/python").unlink()
        case "stamp":
            (debian.clone / ".venv/.stamp").unlink()
    done = debian.run("orchestrate", "--version")
    assert done.returncode == 0, done.stderr
    assert debian.made_environment
    assert "launched -m orchestrator --version" in debian.log
    debian.run("orchestrate", "--version")
    assert not debian.made_environment


def test_a_script_that_starts_the_same_python_needs_no_other_environment(debian: BareHost) -> None:
    real = debian.place / "real-python"
    real.write_text(
        real.read_text().replace('case "$*" in', f'case "$*" in\n*sys.executable*) echo {real} ;;', 1)
    )
    debian.run("scripts/setup")
    assert debian.made_environment
    (debian.programs / "python3").unlink()
    debian.write(debian.programs / "python3", f'exec {real} "$@"')
    debian.run("scripts/setup")
    assert not debian.made_environment


def test_an_environment_for_the_tests_serves_a_run(debian: BareHost) -> None:
    debian.run("scripts/setup", "--dev")
    debian.run("scripts/setup")
    assert not debian.made_environment
    debian.run("scripts/setup", "--cluster")
    assert not debian.made_environment


def test_a_new_environment_has_what_the_old_one_had(debian: BareHost) -> None:
    debian.run("scripts/setup", "--dev")
    with (debian.clone / "requirements/dev.txt").open("a") as lock:
        lock.write("# changed\n")
    debian.run("orchestrate", "--version")
    assert debian.made_environment
    assert any(
        line.startswith("uv pip sync") and line.endswith("requirements/dev.txt") for line in debian.log
    )
    debian.run("scripts/setup", "--dev")
    assert not debian.made_environment


def test_settings_of_tools_are_not_part_of_the_environment(debian: BareHost) -> None:
    debian.run("scripts/setup")
    with (debian.clone / "pyproject.toml").open("a") as project:
        project.write('[tool.other]\nkey = "value"\n')
    debian.run("scripts/setup")
    assert not debian.made_environment


def test_a_command_that_writes_into_the_old_environment_does_not_break_the_new_one(debian: BareHost) -> None:
    debian.run("scripts/setup")
    (debian.clone / ".venv/of-the-old-one").touch()
    # What rm(1) says where files appear in a directory that it removes.
    (debian.programs / "rm").unlink()
    debian.has("rm", f'case "$*" in *.venv|*.venv.old-*) exit 1 ;; esac\nexec {shutil.which("rm")} "$@"')
    done = debian.run("orchestrate", "--version")
    assert not debian.made_environment
    done = debian.run("scripts/setup", "--force")
    assert (done.returncode, "cannot remove" in done.stderr) == (0, False)
    assert not (debian.clone / ".venv/of-the-old-one").exists()
    debian.run("orchestrate", "--version")
    assert not debian.made_environment and "launched -m orchestrator --version" in debian.log


def test_one_for_a_run_does_not_serve_the_tests(debian: BareHost) -> None:
    debian.run("scripts/setup")
    debian.run("scripts/setup", "--dev")
    assert debian.made_environment


def test_a_failure_leaves_the_old_environment_and_no_half_of_a_new_one(debian: BareHost) -> None:
    debian.run("scripts/setup")
    (debian.place / "index-is-broken").touch()
    failed = debian.run("scripts/setup", "--force")
    assert failed.returncode == 1
    assert "is the Python package index reachable" in failed.stderr
    assert (debian.clone / ".venv/bin/python").exists()
    (debian.place / "index-is-broken").unlink()
    assert debian.run("scripts/setup").returncode == 0
    assert not debian.made_environment


@pytest.mark.parametrize(
    "words",
    [("--help",), ("doctor",), ("results", "list"), ("compare", "latest"), ("run", "-p", "x", "--dry-run"),
     ("bisect", "--help"), ("series", "list"), ("exec", "--help"), ()],
)  # fmt: skip
def test_commands_that_only_read_ask_for_no_package(debian: BareHost, words: tuple[str, ...]) -> None:
    lacks(debian, "qemu-system-x86")
    is_not_root(debian)
    done = debian.run("orchestrate", *words)
    assert done.returncode == 0, done.stderr
    assert not debian.started("dpkg-query")
    assert not debian.started("apt-get")
    assert any(line.startswith("launched") for line in debian.log)


@pytest.mark.parametrize(
    "words",
    [("run", "-p", "x"), ("-q", "boot"), ("exec", "-p", "x", "--", "ls", "--help"), ("series", "verify")],
)
def test_commands_that_build_or_boot_install_what_is_missing(
    debian: BareHost, words: tuple[str, ...]
) -> None:
    lacks(debian, "qemu-system-x86")
    done = debian.run("orchestrate", *words)
    assert done.returncode == 0, done.stderr
    assert "setup: installing qemu-system-x86\n" in done.stderr
    assert any(line.startswith("apt-get install") and "qemu-system-x86" in line for line in debian.log)


def test_installing_is_announced_only_where_it_is_allowed(debian: BareHost) -> None:
    lacks(debian, "flex")
    is_not_root(debian)
    done = debian.run("orchestrate", "run", "-p", "core-only")
    assert done.returncode == 1
    assert done.stderr == (
        "setup: these packages are missing, and only root may install them; run: apt-get install flex\n"
    )
    assert not debian.started("apt-get")


def test_sudo_is_used_where_it_asks_nothing(debian: BareHost) -> None:
    lacks(debian, "flex")
    is_not_root(debian)
    debian.has("sudo", '[ "$1" != -n ] || shift; exec "$@"')
    debian.has("true")
    assert debian.run("scripts/setup").returncode == 0
    assert any(
        line.startswith("sudo env DEBIAN_FRONTEND=noninteractive sh -c exec apt-get") for line in debian.log
    )
    assert any(line.startswith("apt-get install") and line.endswith(" flex") for line in debian.log)


def finds_package_lists(host: BareHost, *, recent: bool) -> None:
    (host.programs / "find").unlink()
    answer = "echo a_Packages" if recent else ":"
    host.has(
        "find",
        f'[ "$1" = /var/lib/apt/lists ] && {{ {answer}; exit; }}; exec {shutil.which("find")} "$@"',
    )


@pytest.mark.parametrize(
    ("recent", "configured", "updated"),
    [
        (True, None, False),
        (False, None, True),
        # A suite that was added to sources.list after the last update: its newer versions would not be seen.
        (True, "a.mirror_dists_never-fetched_InRelease", True),
    ],
)
def test_package_lists_are_updated_where_they_are_old_or_lack_a_suite(
    debian: BareHost, recent: bool, configured: str | None, updated: bool
) -> None:
    lacks(debian, "flex")
    finds_package_lists(debian, recent=recent)
    if configured is not None:
        printed = f"'http://a.mirror/InRelease' {configured} 0"
        debian.has("apt-get", f'case "$*" in "update --print-uris") echo "{printed}" ;; esac')
    debian.run("scripts/setup")
    assert ("apt-get update -qq" in debian.log) is updated
    assert any(line.startswith("apt-get install") for line in debian.log)


def test_a_failed_installation_says_why_and_what_to_do(debian: BareHost) -> None:
    lacks(debian, "flex")
    debian.has(
        "apt-get", 'case "$1" in install) echo "E: Unable to locate package flex" >&2; exit 100 ;; esac'
    )
    done = debian.run("scripts/setup")
    assert done.returncode == 1
    assert "E: Unable to locate package flex" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "setup: apt-get could not install the packages; run: apt-get update && apt-get install flex"
    )


def test_apt_says_how_far_it_is(debian: BareHost) -> None:
    lacks(debian, "flex")
    debian.has("apt-get", 'case "$1" in install) echo pmstatus:flex:42.5:Unpacking flex >&3; sleep 5 ;; esac')
    assert "setup:   42 % of the installation: Unpacking flex" in debian.run("scripts/setup").stderr


def test_nothing_of_it_is_left_when_it_is_killed(debian: BareHost) -> None:
    """Its messages have to end with it: a caller that reads them would wait for ever."""
    lacks(debian, "flex")
    began = debian.place / "began"
    debian.has("apt-get", f'case "$1" in install) touch {began}; sleep 1 ;; esac')
    with subprocess.Popen(
        [str(debian.clone / "scripts/setup")], env=debian.surroundings, stderr=subprocess.PIPE
    ) as process:
        try:
            while not began.exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.kill()
            process.communicate(timeout=60)
        finally:
            for message in debian.place.glob("orchestrate-apt-*.now"):
                message.unlink()


def test_a_host_without_apt_is_told_which_programs_it_lacks(host: BareHost) -> None:
    for name in (
        "gcc",
        "make",
        "flex",
        "bison",
        "bc",
        "perl",
        "git",
        "xz",
        "ld",
        "cpio",
        "depmod",
        "gdb",
        "ssh",
    ):
        host.has(name)
    host.has("setpriv")
    done = host.run("orchestrate", "run", "-p", "core-only")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: this host has no apt; install with its own package manager what provides:")
    assert "qemu-system-x86_64" in line
    assert " gcc" not in line
    assert host.run("orchestrate", "results", "list").returncode == 0


def test_an_unknown_option_is_refused(debian: BareHost) -> None:
    done = debian.run("scripts/setup", "--fast")
    assert done.returncode == 2
    assert "unknown option --fast" in done.stderr
    assert not debian.log


def test_the_launcher_needs_no_bit_of_the_caller(debian: BareHost) -> None:
    """It works from another directory, through a symbolic link's target and with nothing in the environment."""
    done = subprocess.run(
        [str(debian.clone / "orchestrate"), "--version"],
        env={"PATH": str(debian.programs), "ORCHESTRATE_CACHE": str(debian.place / "cache")},
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


LOCKS = {"run": (), "cluster": ("cluster",), "dev": ("cluster", "dev")}


def locked(name: str) -> dict[str, Version]:
    versions = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if line and line[0].isalnum():
            requirement, _, _ = line.rstrip(" \\").partition(" ; ")
            package, _, version = requirement.partition("==")
            versions[package.lower().replace("_", "-").replace(".", "-")] = Version(version)
    return versions


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_holds_what_the_project_declares(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"]]
    for extra in LOCKS[name]:
        declared += project["optional-dependencies"][extra]
    versions = locked(name)
    for text in declared:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue
        package = requirement.name.lower().replace("_", "-").replace(".", "-")
        assert package in versions, f"{package}: run scripts/lock"
        assert requirement.specifier.contains(versions[package]), f"{package}: run scripts/lock"


@pytest.mark.parametrize("name", ["run", "cluster"])
def test_what_a_user_gets_is_what_the_tests_saw(name: str) -> None:
    tested = locked("dev")
    assert {package: tested[package] for package in locked(name)} == locked(name)


@pytest.mark.parametrize("name", ["run", "cluster", "dev", "uv"])
def test_every_locked_package_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    for block in text.replace(" \\\n", " ").splitlines():
        if block and block[0].isalnum():
            assert "--hash=sha256:" in block, block


def test_the_scripts_are_executable() -> None:
    for name in ("orchestrate", "scripts/setup", "scripts/lock", "tests/run", "tests/lowest"):
        assert (ROOT / name).stat().st_mode & stat.S_IXUSR, name


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("orchestrate") == project["version"], "run scripts/setup --dev"
    assert orchestrator.__version__ == project["version"]
    argv = [sys.executable, "-m", "orchestrator", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"orchestrate {project['version']}\n"
    assert f"## {project['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_lowest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"].values()
    for text in itertools.chain(project["dependencies"], *optional):
        requirement = Requirement(text)
        bounds = [each.operator for each in requirement.specifier]
        assert requirement.name == project["name"] or ">=" in bounds, text


class Lowest:
    """tests/lowest in a clone whose uv is a script."""

    def __init__(self, place: Path, uv: str) -> None:
        self.cache = place / "cache"
        for name in ("tests", "requirements"):
            (place / name).mkdir(parents=True)
        for name in ("tests/lowest", "requirements/uv.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, place / name)
        version = next(
            word[4:] for word in (ROOT / "requirements/uv.txt").read_text().split() if word[:4] == "uv=="
        )
        tool = self.cache / "tools" / f"uv-{version}" / "bin" / "uv"
        tool.parent.mkdir(parents=True)
        tool.write_text(f"#!/bin/sh\n{uv}\n")
        tool.chmod(0o755)
        self.done = subprocess.run(
            [place / "tests" / "lowest"], capture_output=True, text=True, check=False,
            env={**os.environ, "ORCHESTRATE_CACHE": str(self.cache)},
        )  # fmt: skip


def test_without_a_network_the_lowest_versions_are_not_tried_which_is_reported(tmp_path: Path) -> None:
    lowest = Lowest(tmp_path, 'case $1 in pip) echo "error: Failed to fetch" >&2; exit 2 ;; esac')
    assert lowest.done.returncode == 0 and lowest.done.stdout.splitlines()[-1].startswith("NOT RUN: ")
    assert [each.name for each in (lowest.cache / "tools").glob("lowest-*")] == [], (
        "something half-made is left"
    )


def test_lowest_versions_that_do_not_fit_together_are_a_failure(tmp_path: Path) -> None:
    lowest = Lowest(tmp_path, 'case $1 in pip) echo "No solution found when resolving" >&2; exit 1 ;; esac')
    assert lowest.done.returncode == 1 and "do not fit together" in lowest.done.stdout
