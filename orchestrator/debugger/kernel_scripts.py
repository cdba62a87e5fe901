# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own gdb scripts (Documentation/process/debugging/gdb-kernel-debugging.rst): ``lx-ps``, ``lx-dmesg``, …

A build writes ``constants.py`` only with CONFIG_GDB_SCRIPTS. The modules that do not need it work without: they are
taken from the source of the kernel, and each is loaded by itself.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from orchestrator.errors import InfrastructureError
from orchestrator.kernel.repository import git_command
from orchestrator.process import spawn

_DIRECTORY = "scripts/gdb/linux"
#: Largest archive of the scripts in bytes; that of Linux 6.12 has 130 kB.
_LIMIT = 16 << 20
#: Loads what it can, and prints the commands that gdb has then.
_LOADER = """\
import importlib
import pathlib
import sys

sys.path.insert(0, {parent!r})
loaded, failed = [], []
for file in sorted(pathlib.Path({parent!r}, "linux").glob("*.py")):
    if file.stem in ("__init__", "constants"):
        continue
    try:
        importlib.import_module("linux." + file.stem)
        loaded.append(file.stem)
    except Exception:
        failed.append(file.stem)
print("kernel scripts:", " ".join(loaded), "; not usable:", " ".join(failed) or "none")
"""


def write_kernel_scripts(repository: Path, tree: str, directory: Path) -> Path | None:
    """Write the gdb scripts of a kernel source, and a script for gdb's ``source`` that loads them.

    Args:
        repository: git directory of the kernel source.
        tree: tree ID or commit.
        directory: an empty directory.

    Returns:
        The script; None if this kernel has no gdb scripts.
    """
    archive = _archive(repository, tree)
    if archive is None:
        return None
    parent = directory / "gdb"
    modules = parent / "linux"
    modules.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            for member in opened:
                name = Path(member.name).name
                content = opened.extractfile(member) if name.endswith(".py") else None
                if content is not None:
                    (modules / name).write_bytes(content.read())
    except tarfile.TarError as error:
        raise InfrastructureError(f"git archive wrote no archive: {error}.") from error
    loader = directory / "load.py"
    loader.write_text(_LOADER.format(parent=str(parent)), encoding="utf-8")
    return loader


def _archive(repository: Path, tree: str) -> bytes | None:
    argv = git_command(f"--git-dir={repository}", "archive", "--format=tar", tree, _DIRECTORY)
    git = spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert git.stdout is not None
    with git.stdout as stream:
        content = stream.read(_LIMIT)
    return content if git.wait() == 0 else None
