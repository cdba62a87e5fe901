# SPDX-License-Identifier: GPL-2.0-only
"""Build a kernel: out of tree, reproducibly, and from one stage to the next in seconds.

Finished kernels are content-addressed. Beside them the cache keeps, for each configuration and compiler, one work
tree and one object directory. Going from one stage to another rewrites only the files that differ, so make
compiles only what depends on them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.cache import Cache, digest
from orchestrator.errors import InfrastructureError, OrchestrateError, UserError
from orchestrator.events import Events, Step
from orchestrator.kernel.config import Configuration, check_survived
from orchestrator.kernel.elf import build_id
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import require, run

_KIND = "kernel"
_ARCH = "x86_64"
_IMAGE = "arch/x86/boot/bzImage"
#: What would otherwise differ between two builds of one tree (Documentation/kbuild/reproducible-builds.rst).
_PINNED: Mapping[str, str] = {
    "KBUILD_BUILD_TIMESTAMP": "2000-01-01 00:00:00 +0000",
    "KBUILD_BUILD_USER": "orchestrate",
    "KBUILD_BUILD_HOST": "localhost",
    "KBUILD_BUILD_VERSION": "1",
    "LOCALVERSION": "",
    "LC_ALL": "C",
}
#: An environment variable of these names would change the build behind our back.
_UNSET = (
    "KCFLAGS",
    "KAFLAGS",
    "KCPPFLAGS",
    "CFLAGS",
    "LDFLAGS",
    "MAKEFLAGS",
    "CROSS_COMPILE",
    "ARCH",
    "KBUILD_OUTPUT",
)
_TOOLS = ("make", "gcc", "ld", "flex", "bison", "bc", "perl")
_COMPILED = re.compile(r"^  (?:CC|AS|HOSTCC)\s+(\S+)")
_WARNING = re.compile(r"^(?:\.\./)*(\S+?):(\d+)(?::\d+)?: warning: ")
_ERROR = re.compile(r"(?:fatal )?error:|^ld: |undefined reference|\*\*\* ")


class BuildFailed(OrchestrateError):  # noqa: N818 - an outcome of a cell as much as an error
    """The tree does not compile: the fault of its patches, not of the host.

    Args:
        message: one sentence, then the compiler's own lines.
        log: the whole build log.
    """

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class KernelBuild:
    """A kernel in the cache.

    Args:
        directory: holds the files named by the properties.
        release: what ``uname -r`` will say.
        build_id: of the vmlinux; a running kernel shows it in /sys/kernel/notes.
        compiler: its version line.
        warnings: the compiler's, each once.
        seconds: host seconds it took when it was built.
        cached: whether it was there already.
        digest: of all inputs.
    """

    directory: Path
    release: str
    build_id: str
    compiler: str
    warnings: tuple[str, ...]
    seconds: float
    cached: bool
    digest: str

    @property
    def bzimage(self) -> Path:
        """What QEMU boots."""
        return self.directory / "bzImage"

    @property
    def vmlinux(self) -> Path:
        """What gdb reads."""
        return self.directory / "vmlinux"

    @property
    def config(self) -> Path:
        """The ``.config`` it was built with."""
        return self.directory / "config"

    @property
    def log(self) -> Path:
        """Everything that make printed."""
        return self.directory / "build.log"


def build_kernel(
    tree: PatchedTree, configuration: Configuration, cache: Cache, events: Events, jobs: int | None = None
) -> KernelBuild:
    """Build a kernel, or find it in the cache.

    Args:
        jobs: of make; None for one a CPU.

    Raises:
        BuildFailed: the tree does not compile.
        UserError: a requested option did not survive.
        InfrastructureError: a tool is missing, or the disk is full.
    """
    key = _key(tree, configuration)
    cached = cache.has(_KIND, key)

    def make(directory: Path) -> None:
        for tool in _TOOLS:
            require(tool)
        with (
            events.step(f"build {_label(tree)}", _flavour(configuration)) as step,
            _Workshop(configuration, cache) as workshop,
        ):
            workshop.build(tree, directory, step, jobs or os.cpu_count() or 1)

    directory = cache.obtain(_KIND, key, make)
    facts = json.loads((directory / "build.json").read_text(encoding="utf-8"))
    return KernelBuild(
        directory,
        facts["release"],
        facts["build_id"],
        facts["compiler"],
        tuple(facts["warnings"]),
        facts["seconds"],
        cached,
        directory.name,
    )


def is_built(tree: PatchedTree, configuration: Configuration, cache: Cache) -> bool:
    """Whether :func:`build_kernel` would find it in the cache."""
    return cache.has(_KIND, _key(tree, configuration))


def _key(tree: PatchedTree, configuration: Configuration) -> dict[str, Any]:
    return {
        "tree": tree.tree,
        "configuration": configuration.digest,
        "tools": list(_tool_versions()),
        "pinned": dict(_PINNED),
        "architecture": _ARCH,
    }


@lru_cache(maxsize=1)
def _tool_versions() -> tuple[str, ...]:
    return tuple(run([require(tool), "--version"]).stdout.splitlines()[0] for tool in ("gcc", "ld"))


def _label(tree: PatchedTree) -> str:
    if not tree.stages:
        return "baseline"
    last = tree.stages[-1]
    return f"{last.group}:{last.number}"


def _flavour(configuration: Configuration) -> str:
    return f"{configuration.flavour}{' with DWARF' if configuration.dwarf else ''}"


class _Workshop:
    """The work tree and object directory of one configuration, locked while in use."""

    def __init__(self, configuration: Configuration, cache: Cache) -> None:
        # The source's history is not part of the name: its files are switched like those of a stage.
        identity = digest({"configuration": configuration.digest, "tools": list(_tool_versions())})
        name = f"build-{configuration.flavour}{'-dwarf' if configuration.dwarf else ''}-{identity[:8]}"
        self._configuration = configuration
        self._place = cache.workspace(name)
        self._lock = cache.lock(name)
        self.source = self._place / "source"
        self.objects = self._place / "objects"
        self._index = self._place / "index"
        self._count = self._place / "compiled.json"
        self._repository: Path = self._place  # of the tree that is laid out

    def __enter__(self) -> _Workshop:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def build(self, tree: PatchedTree, directory: Path, step: Step, jobs: int) -> None:
        """Switch to `tree`, make, and copy the result to `directory`."""
        began = time.monotonic()
        log = self._place / "build.log"
        log.unlink(missing_ok=True)
        self._switch(tree, step)
        self._configure(log)
        self._make(log, step, jobs)
        seconds = time.monotonic() - began
        for made, kept in ((_IMAGE, "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")):
            shutil.copyfile(self.objects / made, directory / kept)
        shutil.copyfile(log, directory / "build.log")
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {
            "release": (self.objects / "include/config/kernel.release").read_text(encoding="utf-8").strip(),
            "build_id": build_id(directory / "vmlinux"),
            "compiler": _tool_versions()[0],
            "warnings": list(warnings_of(said)),
            "seconds": round(seconds, 1),
        }
        (directory / "build.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def _switch(self, tree: PatchedTree, step: Step) -> None:
        """Make the work tree that of `tree`; files that do not differ keep their times."""
        fresh = not self.source.exists() or not self._index.exists()
        if fresh:
            shutil.rmtree(self.source, ignore_errors=True)
            shutil.rmtree(self.objects, ignore_errors=True)
            self._index.unlink(missing_ok=True)
            step.note("laying out the source")
        self.source.mkdir(parents=True, exist_ok=True)
        self.objects.mkdir(parents=True, exist_ok=True)
        self._repository = tree.repository
        repository = Repository(tree.repository)
        # An interrupted checkout leaves git's lock behind; ours is what keeps two builds apart.
        self._index.with_name("index.lock").unlink(missing_ok=True)
        config = ("core.sparseCheckout=false", "checkout.workers=0", "core.fsync=none")
        repository.git(
            "read-tree", "--reset", "-u", tree.commit, work_tree=self.source, index=self._index, config=config
        )
        if fresh:
            step.note("source laid out")

    def _configure(self, log: Path) -> None:
        requests = self._place / "requests.config"
        granted = self.objects / ".config"
        # What the configuration depends on: the requests, and what the tree's Kconfig files offer.
        wanted = f"# Kconfig {self._kconfig_digest()}\n{self._configuration.text}"
        if not granted.exists() or not requests.exists() or requests.read_text(encoding="utf-8") != wanted:
            requests.write_text(wanted, encoding="utf-8")
            self._run(["allnoconfig", f"KCONFIG_ALLCONFIG={requests}"], log)
            self._run(["olddefconfig"], log)
        try:
            check_survived(self._configuration.requested, granted.read_text(encoding="utf-8"))
        except UserError:
            requests.unlink()
            raise

    def _kconfig_digest(self) -> str:
        repository = Repository(self._repository)
        listed = repository.git(
            "ls-files", "--stage", "--", "*Kconfig*", index=self._index, work_tree=self.source
        )
        return hashlib.sha256(listed.stdout.encode()).hexdigest()

    def _run(self, words: list[str], log: Path) -> None:
        run(self._command(words), env=self._environment(), log_file=log)

    def _make(self, log: Path, step: Step, jobs: int) -> None:
        expected = json.loads(self._count.read_text(encoding="utf-8")) if self._count.exists() else None
        cold = not (self.objects / "vmlinux").exists()
        total = expected if cold else None
        compiled = 0
        recent: deque[str] = deque(maxlen=400)

        def follow(line: str) -> None:
            nonlocal compiled
            recent.append(line)
            match = _COMPILED.match(line)
            if match:
                compiled += 1
                step.progress(compiled, total if total and compiled <= total else None, "files", match[1])

        done = run(
            self._command([f"-j{jobs}", "bzImage"]),
            env=self._environment(),
            log_file=log,
            on_line=follow,
            check=False,
        )
        if done.returncode != 0:
            self._explain(list(recent), log)
        if cold:
            self._count.write_text(json.dumps(compiled), encoding="utf-8")

    def _explain(self, recent: list[str], log: Path) -> None:
        kept = self._place / "failed.log"
        shutil.copyfile(log, kept)
        for line in recent:
            if "No space left on device" in line:
                raise InfrastructureError(
                    "the disk is full; make room, or set ORCHESTRATE_CACHE elsewhere.", kept
                )
            match = re.search(r"fatal error: (gelf\.h|openssl/\S+): No such file", line)
            if match:
                package = "libelf-dev" if match[1] == "gelf.h" else "libssl-dev"
                raise InfrastructureError(
                    f"the header {match[1]} is missing; install the Debian package {package}.", kept
                )
        said = "\n".join(error_of(recent))
        raise BuildFailed(f"the kernel does not compile:\n{said}", kept)

    def _command(self, words: list[str]) -> list[str]:
        compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
        return [
            *("make", "-C", str(self.source), f"O={self.objects}", f"ARCH={_ARCH}", "--no-print-directory"),
            *(f"CC={compiler}", f"HOSTCC={compiler}"),
            *(f"{name}={value}" for name, value in _PINNED.items() if name != "LC_ALL"),
            *words,
        ]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"LC_ALL": "C", **{name: "" for name in _UNSET if name in os.environ}}


def warnings_of(log: list[str]) -> tuple[str, ...]:
    """The compiler's warnings in a build log, each once, with the path as it is in the source.

    >>> warnings_of(["../mm/memory.c:12:3: warning: unused variable 'x' [-Wunused-variable]"])
    ("mm/memory.c:12:3: warning: unused variable 'x' [-Wunused-variable]",)
    """
    found: dict[str, None] = {}
    for line in log:
        if _WARNING.match(line):
            found[re.sub(r"^(?:\.\./)+|^/\S*?/source/", "", line)] = None
    return tuple(found)


def error_of(log: list[str], context: int = 6) -> list[str]:
    """The first error in a build log, with the lines that follow it; the log's end where none is found."""
    for number, line in enumerate(log):
        if _ERROR.search(line):
            return log[max(0, number - 1) : number + context]
    return log[-context:]
