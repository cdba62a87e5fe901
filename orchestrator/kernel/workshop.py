# SPDX-License-Identifier: GPL-2.0-only
"""A workshop: the place where kernels are compiled, out of tree, and from one stage to the next in seconds.

The cache has one workshop per flavour and compiler: a work tree and an object directory. Switching to another stage
rewrites only the files that differ, so make compiles only what depends on them. The result depends on tree,
configuration and tools alone, never on earlier builds in the workshop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from filelock import Timeout

from orchestrator.cache import Cache, digest, file_digest
from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.kernel.build_log import blames_source, compiled, error_of, host_trouble, warnings_by_object
from orchestrator.kernel.config import Configuration, check_survived
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.target import tool_versions
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import Completed, run, tied

#: Settings that would otherwise differ between builds of one tree (Documentation/kbuild/reproducible-builds.rst).
_PINNED: Mapping[str, str] = {
    "KBUILD_BUILD_TIMESTAMP": "2000-01-01 00:00:00 +0000",
    "KBUILD_BUILD_USER": "orchestrate",
    "KBUILD_BUILD_HOST": "localhost",
    "KBUILD_BUILD_VERSION": "1",
    "LOCALVERSION": "",
    "LC_ALL": "C",
}
#: Makes paths in the debugging information relative, so that it does not depend on the build directory. The build ID
#: is computed over it too.
_RELATIVE_PATHS = "-fdebug-prefix-map={source}/= -fdebug-prefix-map={objects}=."
#: Environment variables that would change the build.
_UNSET = (
    "ARCH",
    "CFLAGS",
    "CROSS_COMPILE",
    "GNUMAKEFLAGS",
    "HOSTCFLAGS",
    "HOSTLDFLAGS",
    "KAFLAGS",
    "KBUILD_OUTPUT",
    "KCFLAGS",
    "KCPPFLAGS",
    "LDFLAGS",
    "LLVM",
    "LLVM_IAS",
    "MAKEFLAGS",
    "MFLAGS",
)
#: Make targets of a bootable kernel.
_WHOLE = ("bzImage",)
#: Makefile that prints obj-y of one directory with composite objects expanded (Documentation/kbuild/makefiles.rst).
_LIST = """\
include {config}
include {kbuild}
parts = $(foreach each,$(1),$(each) $(call parts,$(filter %.o,$($(each:.o=-y)) $($(each:.o=-objs)))))
.PHONY: all
all: ; @: $(foreach each,$(call parts,$(filter %.o,$(obj-y) $(lib-y))) $(filter %/,$(obj-y)),$(info $(each)))
"""
#: Host seconds to wait for the processes of an interrupted build, which have been signalled to end.
_ORPHANS_S = 60.0
#: Objects finished within this many nanoseconds before the end of an interrupted build are rebuilt as well.
_UNTRUSTED_NS = 2_000_000_000


class DoesNotCompileError(Exception):
    """The source does not compile; the text is the first error in make's output."""


class _DamagedError(Exception):
    """make fails, but not because of the source."""


def pinned(configuration: Configuration) -> dict[str, str]:
    """Make variables common to all builds of a configuration, with ``{source}`` and ``{objects}`` as placeholders."""
    debugging = any(option.startswith("CONFIG_DEBUG_INFO_DWARF") for option in configuration.requested)
    relative = {"KCFLAGS": _RELATIVE_PATHS, "KAFLAGS": _RELATIVE_PATHS} if debugging else {}
    return {**_PINNED, **relative}


@dataclass(frozen=True)
class _State:
    """The state of a workshop between two uses.

    Args:
        whole: the last build was not interrupted, whether or not it succeeded; False while a build runs.
        requests: digest of the configuration that ``.config`` was made from; empty if unknown.
        granted: digest of ``.config`` itself.
    """

    whole: bool = False
    requests: str = ""
    granted: str = ""


def has_objects(configuration: Configuration, cache: Cache) -> bool:
    """Whether a kernel of this configuration was built before, so that the next build is incremental."""
    return (cache.root / "workspace" / _name_of(configuration) / "objects" / "vmlinux").is_file()


def _flavour_of(configuration: Configuration) -> str:
    return f"{configuration.flavour}{'-dwarf' if configuration.dwarf else ''}"


def _name_of(configuration: Configuration) -> str:
    # The name contains neither source nor configuration: both are switched like a stage, and kbuild recompiles what
    # depends on the changed files and options.
    tools = list(tool_versions(configuration.target))
    return f"build-{_flavour_of(configuration)}-{digest({'tools': tools})[:8]}"


class Workshop:
    """Work tree and object directory for one flavour and compiler, locked while in use."""

    def __init__(self, configuration: Configuration, cache: Cache, step: Step) -> None:
        name = _name_of(configuration)
        self._configuration = configuration
        self._step = step
        self._place = cache.workspace(name)
        self._lock = cache.lock(name)
        self.source = self._place / "source"
        self.objects = self._place / "objects"
        self._index = self._place / "index"
        self.log = self._place / "build.log"
        self._state_file = self._place / "state.json"
        self._warnings_file = self._place / "warnings.json"
        self._count = cache.workspace("build-counts") / f"{_flavour_of(configuration)}.json"

    def __enter__(self) -> Workshop:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._step.note("waiting for another build of this flavour")
            self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def lay_out(self, tree: PatchedTree) -> None:
        """Check out `tree` and configure it, without compiling anything.

        Raises:
            UserError: a requested option is not in the final configuration.
            InfrastructureError: the host failed.
        """
        state = self._recover()
        self.log.unlink(missing_ok=True)
        self._remember(_State())
        changed = self._switch(tree, state)
        if self._is_to_be_configured(state, changed):
            try:
                self._configure()
            except _DamagedError as damage:
                raise DoesNotCompileError(str(damage)) from None
        self._remember(_State(True, self._configuration.digest, file_digest(self.objects / ".config")))

    def check(self, objects: Sequence[str], jobs: int) -> list[str]:
        """Run sparse(1) on the sources of objects that :meth:`build` has built from the current tree.

        Args:
            objects: paths relative to the object directory, e.g. ``mm/memory.o``.

        Returns:
            The output of make and sparse (``C=2``, Documentation/dev-tools/sparse.rst), with relative paths.
        """
        # --output-sync: the findings of a source directly follow the line that names it.
        done = self._run([f"-j{jobs}", "--output-sync=target", "C=2", "CHECK=sparse", *objects])
        lines = [self._relative(line) for line in done.stdout.splitlines()]
        # The exit status is no use: with findings, sparse may or may not fail. That sparse did not run on a source
        # at all is an error.
        if done.returncode < 0 or sum(line.startswith("  CHECK ") for line in lines) < len(objects):
            self._blame(done)
        return lines

    def build(self, tree: PatchedTree, jobs: int, goals: Sequence[str] = _WHOLE) -> None:
        """Check out `tree` and build it.

        Args:
            jobs: parallel jobs of make.
            goals: make targets: the whole kernel, or single objects.

        Raises:
            DoesNotCompileError: the tree does not compile.
            UserError: a requested option is not in the final configuration.
            InfrastructureError: the host failed.
        """
        state = self._recover()
        self.log.unlink(missing_ok=True)
        try:
            self._make_all(tree, state, jobs, goals)
        except _DamagedError as damage:
            if state is None:
                raise DoesNotCompileError(str(damage)) from None
            self._step.note("the object directory seems damaged; building from scratch")
            shutil.rmtree(self.objects)
            try:
                self._make_all(tree, _State(), jobs, goals)
            except _DamagedError as again:
                raise DoesNotCompileError(str(again)) from None

    def warnings(self) -> list[str]:
        """The compiler's warnings about the last built tree, without duplicates."""
        return list(dict.fromkeys(line for _, own in sorted(self._known_warnings().items()) for line in own))

    def listed(self, directory: str) -> list[str]:
        """The objects and directories that the Kbuild file of a directory lists for the current configuration.

        Args:
            directory: directory of the source; empty for the top.

        Returns:
            The entries of ``obj-y``, including directories, and the parts of composite objects.

        Raises:
            DoesNotCompileError: make cannot parse the file.
        """
        names = ("Kbuild", "Makefile") if directory else ("Kbuild",)
        kbuild = next((each for name in names if (each := self.source / directory / name).is_file()), None)
        if kbuild is None:
            return []
        target = self._configuration.target
        variables = {
            "srctree": str(self.source),
            "objtree": str(self.objects),
            "src": str(self.source / directory),
            "obj": directory,
            "ARCH": target.architecture,
            "SRCARCH": target.directory,
            "BITS": str(target.bits),
        }
        done = run(
            ["make", "-s", "-f", "-", *(f"{name}={value}" for name, value in variables.items()), "all"],
            cwd=self.objects,
            env=self._environment(),
            input_text=_LIST.format(config=".config", kbuild=kbuild),
            check=False,
        )
        if done.returncode != 0:
            raise DoesNotCompileError("\n".join(map(self._relative, error_of(done.stderr.splitlines()))))
        return sorted(set(done.stdout.split()))

    def warnings_of(self, objects: Iterable[str]) -> dict[str, list[str]]:
        """The compiler's warnings for some objects of the last built tree."""
        known = self._known_warnings()
        return {name: known.get(name, []) for name in objects}

    def _make_all(self, tree: PatchedTree, state: _State | None, jobs: int, goals: Sequence[str]) -> None:
        self._remember(_State())
        changed = self._switch(tree, state)
        if self._is_to_be_configured(state, changed):
            self._configure()
        self._make(jobs, goals)

    # Earlier builds

    def _recover(self) -> _State | None:
        """The state left by the last use, repaired if it was interrupted; None if nothing is usable."""
        state = self._remembered()
        if state is None or not self.source.is_dir() or not self._index.is_file():
            for part in (self.source, self.objects):
                shutil.rmtree(part, ignore_errors=True)
            self._index.unlink(missing_ok=True)
            self._warnings_file.unlink(missing_ok=True)
            return None
        if not state.whole and self.objects.is_dir():
            self._step.note("the last build here was interrupted; reusing the objects that it finished")
            self._await_orphans()
            self._remove_half_written()
            if self.log.exists():
                self._keep_warnings(self.log.read_text(encoding="utf-8", errors="replace").splitlines())
            return _State()
        return state

    def _remembered(self) -> _State | None:
        try:
            return _State(**json.loads(self._state_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _remember(self, state: _State) -> None:
        new = self._state_file.with_suffix(".new")
        new.write_text(json.dumps(asdict(state)), encoding="utf-8")
        new.replace(self._state_file)

    def _await_orphans(self) -> None:
        """Wait for compilers left over from a killed orchestrate: they still write into the object directory."""
        deadline = time.monotonic() + _ORPHANS_S
        while _is_used(self.objects):
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"an interrupted build still runs in {self.objects}; kill it and try again."
                )
            time.sleep(0.2)

    def _remove_half_written(self) -> None:
        """Remove every target that was not finished; make would consider it up to date because of its time.

        kbuild writes ``.TARGET.cmd`` after the target (scripts/Kbuild.include, cmd_and_fixdep), so a target newer
        than that is incomplete. The most recent targets are removed too: their ``.cmd`` may be incomplete.
        """
        found: list[tuple[Path, int, int]] = []
        for below, _, names in os.walk(self.objects):
            for name in names:
                target = Path(below, name[1:-4])
                if name.startswith(".") and name.endswith(".cmd") and target.is_file():
                    found.append((target, target.stat().st_mtime_ns, Path(below, name).stat().st_mtime_ns))
        end = max((max(times) for _, *times in found), default=0)
        for target, made, recorded in found:
            if made > recorded or recorded > end - _UNTRUSTED_NS:
                target.unlink()

    # Source and configuration

    def _switch(self, tree: PatchedTree, state: _State | None) -> list[str]:
        """Check out `tree` and return the changed paths; all other files keep their times."""
        self.source.mkdir(parents=True, exist_ok=True)
        self.objects.mkdir(parents=True, exist_ok=True)
        # An interrupted checkout leaves git's lock file behind. It is safe to remove, as the workshop is locked.
        self._index.with_name("index.lock").unlink(missing_ok=True)
        repository = Repository(tree.repository)

        def git(*arguments: str, check: bool = False) -> Completed:
            config = ("core.sparseCheckout=false", "checkout.workers=0")
            return repository.git(
                *arguments, work_tree=self.source, index=self._index, config=config, check=check
            )

        changed: list[str] = []
        if state is None:
            self._step.note("checking out the source")
        else:
            if not state.whole:  # an interrupted checkout leaves files that are not in the index
                git("clean", "-ffdxq")
            listed = git("diff-index", "--cached", "--name-only", "-z", tree.commit)
            if listed.returncode != 0:
                return self._switch_anew(tree)
            changed = listed.stdout.split("\0")[:-1]
        # It checks every file, so it also repairs files that were edited or deleted by hand.
        if git("read-tree", "--reset", "-u", tree.commit, check=state is None).returncode != 0:
            return self._switch_anew(tree)
        if state is None:
            self._step.note("source checked out")
        return changed

    def _switch_anew(self, tree: PatchedTree) -> list[str]:
        self._step.note("the work tree is damaged")
        shutil.rmtree(self.source, ignore_errors=True)
        self._index.unlink(missing_ok=True)
        self._switch(tree, None)
        return ["Makefile"]  # as if everything had changed

    def _is_to_be_configured(self, state: _State | None, changed: Iterable[str]) -> bool:
        config = self.objects / ".config"
        return (
            state is None
            or state.requests != self._configuration.digest
            or not config.is_file()
            or state.granted != file_digest(config)
            or any(map(_configures, changed))
        )

    def _configure(self) -> None:
        """Make ``.config`` from the requested options only, so that no option of an earlier stage remains."""
        requests = self._place / "requests.config"
        requests.write_text(self._configuration.text, encoding="utf-8")
        for words in (["allnoconfig", f"KCONFIG_ALLCONFIG={requests}"], ["olddefconfig"]):
            done = self._run(words)
            if done.returncode != 0:
                self._blame(done)
        granted = (self.objects / ".config").read_text(encoding="utf-8")
        asked = self._configuration
        check_survived(asked.requested, granted, asked.optional, asked.others)
        if lacking := asked.missing_from(granted):
            self._step.note(f"this kernel has no {', '.join(lacking)}")

    # make

    def _make(self, jobs: int, goals: Sequence[str]) -> None:
        whole = tuple(goals) == _WHOLE
        cold = whole and not (self.objects / "vmlinux").exists() and not (self.objects / "mm").exists()
        total = json.loads(self._count.read_text(encoding="utf-8")) if cold and self._count.exists() else None
        count = 0

        def follow(line: str) -> None:
            nonlocal count
            name = compiled(line)
            if name is not None:
                count += 1
                self._step.progress(count, total if total and count <= total else None, "files", name)

        # --output-sync: the messages of a compiler directly follow the line that names the object.
        done = self._run([f"-j{jobs}", "--output-sync=target", *goals], follow)
        lines = done.stdout.splitlines()
        if done.returncode >= 0 and host_trouble(lines) is None:
            self._remember(_State(True, self._configuration.digest, file_digest(self.objects / ".config")))
            self._keep_warnings(lines)
        if done.returncode != 0:
            self._blame(done)
        if cold:
            self._count.write_text(json.dumps(count), encoding="utf-8")

    def _run(self, words: Sequence[str], on_line: Callable[[str], None] | None = None) -> Completed:
        # If we die, make gets SIGTERM instead of SIGKILL, so that it ends its sub-makes and compilers.
        return run(
            tied(self._command(words), "TERM"),
            env=self._environment(),
            log_file=self.log,
            on_line=on_line,
            check=False,
        )

    def _command(self, words: Sequence[str]) -> list[str]:
        cache = "ccache " if self._has_ccache else ""
        target = self._configuration.target
        cross = [f"CROSS_COMPILE={target.cross}"] if target.cross else []
        variables = {
            name: value.format(source=self.source, objects=self.objects)
            for name, value in pinned(self._configuration).items()
            if name != "LC_ALL"
        }
        return [
            *(
                "make",
                "-C",
                str(self.source),
                f"O={self.objects}",
                f"ARCH={target.architecture}",
                "--no-print-directory",
            ),
            *(*cross, *target.words),
            *(f"CC={cache}{target.program}", f"HOSTCC={cache}gcc", "KCONFIG_CONFIG=.config"),
            *(f"{name}={value}" for name, value in variables.items()),
            *words,
        ]

    @cached_property
    def _has_ccache(self) -> bool:
        """Whether ccache works; if it cannot write its directory, every compilation would fail."""
        if shutil.which("ccache") is None:
            return False
        probe = ["ccache", "gcc", "-x", "c", "-c", "-o", os.devnull, "-"]
        # Another input each time: a result from its cache would not be written.
        done = run(probe, input_text=f"int probe_{os.getpid()}_{time.time_ns()};\n", check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            self._step.note(f"ccache does not work, building without it: {said}")
        return done.returncode == 0

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"LC_ALL": "C", **{name: "" for name in _UNSET if name in os.environ}}

    # Output of make

    def _blame(self, done: Completed) -> None:
        """Raise the error that a failed make means."""
        lines = done.stdout.splitlines()
        trouble = host_trouble(lines)
        if trouble is not None:
            trouble.log = self.log
            raise trouble
        if done.returncode < 0:
            raise InfrastructureError(f"make was killed by signal {-done.returncode}; try again.", self.log)
        message = "\n".join(self._relative(line) for line in error_of(lines))
        raise DoesNotCompileError(message) if blames_source(lines) else _DamagedError(message)

    def _relative(self, line: str) -> str:
        return re.sub(r"^(?:\.\./)+", "", line.replace(f"{self.source}/", ""))

    def _keep_warnings(self, lines: Iterable[str]) -> None:
        """Keep the warnings per object: the next build compiles, and warns about, only a part of the objects."""
        known: dict[str, list[str]] = self._known_warnings()
        known.update(warnings_by_object(map(self._relative, lines)))
        text = json.dumps({name: found for name, found in known.items() if found}, indent=1)
        self._warnings_file.write_text(text, encoding="utf-8")

    def _known_warnings(self) -> dict[str, list[str]]:
        with suppress(OSError, ValueError):
            known = json.loads(self._warnings_file.read_text(encoding="utf-8"))
            return {name: found for name, found in known.items() if (self.objects / name).exists()}
        return {}


def _is_used(directory: Path) -> bool:
    """Whether a process has its working directory in `directory` or below."""
    import psutil

    for process in psutil.process_iter(["cwd"]):
        place = process.info["cwd"]
        if place and Path(place).is_relative_to(directory):
            return True
    return False


def _configures(path: str) -> bool:
    """Whether a source file affects the configuration."""
    return (
        PurePosixPath(path).name.startswith("Kconfig")
        or path.startswith("scripts/")
        or path == "Makefile"
        or re.fullmatch(r"arch/\w+/Makefile", path) is not None
    )
