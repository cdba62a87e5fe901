# SPDX-License-Identifier: GPL-2.0-only
"""A Python package that is missing, or broken, is a sentence and not a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import missing_package

ROOT = Path(__file__).resolve().parents[2]


def without(package: str, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command line, started as the launcher does, where a package cannot be found."""
    # None stands for a module that is known to be missing.
    script = (
        f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv = ['orchestrate', *sys.argv[1:]];"
        "runpy.run_module('orchestrator', run_name='__main__')"
    )
    surroundings = {
        "PATH": "/usr/bin:/bin",
        "ORCHESTRATE_ROOT": str(ROOT),
        "ORCHESTRATE_RESULTS": str(place / "results"),
        "ORCHESTRATE_CACHE": str(place / "cache"),
    }
    argv = [sys.executable, "-c", script, *words]
    return subprocess.run(argv, cwd=ROOT, env=surroundings, text=True, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("package", "option", "words"),
    [
        ("typer", "--force", ("--version",)),
        ("pandas", "--force", ("-q", "compare", "latest")),
        ("distributed", "--cluster", ("-q", "run", "-p", "core-only", "--executor", "dask://localhost:1")),
    ],
)
def test_a_missing_package_is_one_sentence(
    package: str, option: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = without(package, tmp_path, *words)
    assert (
        done.stderr == f"orchestrate: the Python package {package} is missing; run scripts/setup {option}\n"
    )
    assert done.returncode == 1
    assert not list((tmp_path / "results").glob("*"))


def test_with_debug_there_is_a_traceback(tmp_path: Path) -> None:
    assert "Traceback" in without("typer", tmp_path, "--debug", "--version").stderr


def test_a_wrong_place_is_reported_without_the_packages_of_a_cluster(tmp_path: Path) -> None:
    done = without("distributed", tmp_path, "-q", "run", "-p", "core-only", "--executor", "lokal")
    assert done.returncode == 2
    assert done.stderr == "orchestrate: --executor lokal: choose local or dask://HOST:PORT.\n"


def test_a_package_that_misses_another_one_names_it() -> None:
    try:
        try:
            raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
        except ModuleNotFoundError as error:
            raise ImportError("Unable to import required dependencies") from error
    except ImportError as error:
        assert missing_package(error) == "the Python package numpy is missing; run scripts/setup --force"


def test_a_broken_package_is_reported_with_the_error_of_its_import() -> None:
    error = ImportError("libarrow.so.1: cannot open shared object file\nmore", name="pyarrow.lib")
    assert missing_package(error) == (
        "a Python package cannot be imported (libarrow.so.1: cannot open shared object file); "
        "run scripts/setup --force"
    )


def test_a_fault_of_this_project_stays_one() -> None:
    assert missing_package(ModuleNotFoundError("No module", name="orchestrator.nosuch")) is None
    assert missing_package(ImportError("cannot import name", name="orchestrator.errors")) is None
