# SPDX-License-Identifier: GPL-2.0-only
"""Where kernels are compiled: out of tree, and from one stage to the next in seconds.

The cache keeps a workshop for each flavour and compiler: one work tree and one object directory. Going from one
stage to another rewrites only the files that differ, so make compiles only what depends on them. What comes out
depends on tree, configuration and tools alone, never on what the workshop built before.
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
from functools import lru_cache
from pathlib import Path, PurePosixPath

from filelock import Timeout

from orchestrator.cache import Cache, digest, file_digest
from orchestrator.errors import InfrastructureError
from orchestrator.events import Step
from orchestrator.kernel.build_log import blames_source, compiled, error_of, host_trouble, warnings_by_object
from orchestrator.kernel.config import Configuration, check_survived
from orchestrator.kernel.repository import Repository
from orchestrator.kernel.tree import PatchedTree
from orchestrator.process import Completed, run, tied, version_of

#: As make and the kernel name it.
ARCHITECTURE = "x86_64"
#: What would otherwise differ between two builds of one tree (Documentation/kbuild/reproducible-builds.rst).
_PINNED: Mapping[str, str] = {
    "KBUILD_BUILD_TIMESTAMP": "2000-01-01 00:00:00 +0000",
    "KBUILD_BUILD_USER": "orchestrate",
    "KBUILD_BUILD_HOST": "localhost",
    "KBUILD_BUILD_VERSION": "1",
    "LOCALVERSION": "",
    "LC_ALL": "C",
}
#: Debugging information names files relative to the source, so that it is the same wherever it is built; the build
#: id is computed over it too.
_RELATIVE_PATHS = "-fdebug-prefix-map={source}/= -fdebug-prefix-map={objects}=."
#: An environment variable of these names would change the build behind our back.
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
#: What is made of a kernel that is to be booted.
_WHOLE = ("bzImage",)
#: Prints obj-y of one directory, composite objects taken apart (Documentation/kbuild/makefiles.rst).
_LIST = """\
include {config}
include {kbuild}
parts = $(foreach each,$(1),$(each) $(call parts,$(filter %.o,$($(each:.o=-y)) $($(each:.o=-objs)))))
.PHONY: all
all: ; @: $(foreach each,$(call parts,$(filter %.o,$(obj-y) $(lib-y))) $(filter %/,$(obj-y)),$(info $(each)))
"""
#: Host seconds that processes of an interrupted build are given to end; they were told to.
_ORPHANS_S = 60.0
#: Nanoseconds before the end of an interrupted build within which what was finished is not trusted either.
_UNTRUSTED_NS = 2_000_000_000


class DoesNotCompileError(Exception):
    """The source does not compile; the text is what make said first."""


class _DamagedError(Exception):
    """make fails, but not because of the source."""


def pinned(configuration: Configuration) -> dict[str, str]:
    """What is the same for every build of a configuration; ``{source}`` and ``{objects}`` stand for directories."""
    debugging = any(option.startswith("CONFIG_DEBUG_INFO_DWARF") for option in configuration.requested)
    relative = {"KCFLAGS": _RELATIVE_PATHS, "KAFLAGS": _RELATIVE_PATHS} if debugging else {}
    return {**_PINNED, **relative}


@lru_cache(maxsize=1)
def tool_versions() -> tuple[str, ...]:
    """The version lines of compiler and linker.

    Raises:
        InfrastructureError: one of them is not installed.
    """
    return tuple(map(version_of, ("gcc", "ld")))


@dataclass(frozen=True)
class _State:
    """What a workshop remembers between two uses.

    Args:
        whole: the last build ended by itself, well or not; False while one runs.
        requests: digest of the configuration that ``.config`` was made from; empty where it is not known.
        granted: digest of ``.config`` itself.
    """

    whole: bool = False
    requests: str = ""
    granted: str = ""


def has_objects(configuration: Configuration, cache: Cache) -> bool:
    """Whether a kernel of this configuration was built before, so that the next one compiles only what differs."""
    return (cache.root / "workspace" / _name_of(configuration) / "objects" / "vmlinux").is_file()


def _flavour_of(configuration: Configuration) -> str:
    return f"{configuration.flavour}{'-dwarf' if configuration.dwarf else ''}"


def _name_of(configuration: Configuration) -> str:
    # Neither the source nor the configuration is part of the name: files and options are switched like those of a
    # stage, and kbuild compiles what depends on them.
    return f"build-{_flavour_of(configuration)}-{digest({'tools': list(tool_versions())})[:8]}"


class Workshop:
    """The work tree and object directory of one flavour and compiler, locked while in use."""

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
        """Switch to `tree` and configure it; nothing is compiled.

        Raises:
            UserError: a requested option did not survive.
            InfrastructureError: the host is in trouble.
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
        """Run sparse(1) over the sources of objects that :meth:`build` has made of the tree laid out.

        Args:
            objects: relative to the object directory, e.g. ``mm/memory.o``.

        Returns:
            What make and sparse print (``C=2``, Documentation/dev-tools/sparse.rst); paths are relative.
        """
        # --output-sync: the findings of each source stay behind the line that names it.
        done = self._run([f"-j{jobs}", "--output-sync=target", "C=2", "CHECK=sparse", *objects])
        lines = [self._relative(line) for line in done.stdout.splitlines()]
        # Its status says nothing: sparse may end well or not where it has found something. A source that it was
        # not run on is another matter.
        if done.returncode < 0 or sum(line.startswith("  CHECK ") for line in lines) < len(objects):
            self._blame(done)
        return lines

    def build(self, tree: PatchedTree, jobs: int, goals: Sequence[str] = _WHOLE) -> None:
        """Switch to `tree` and make it.

        Args:
            jobs: of make.
            goals: of make: the whole kernel, or single objects.

        Raises:
            DoesNotCompileError: it does not compile.
            UserError: a requested option did not survive.
            InfrastructureError: the host is in trouble.
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
        """The compiler's warnings about the tree that was built last, each once."""
        return list(
            dict.fromkeys(line for _, said in sorted(self._known_warnings().items()) for line in said)
        )

    def listed(self, directory: str) -> list[str]:
        """What kbuild's own file lists in a directory of the tree laid out, for its configuration.

        Args:
            directory: of the source; the empty one is its top.

        Returns:
            The names that ``obj-y`` has, directories among them, and those that composite objects are made of.

        Raises:
            DoesNotCompileError: make does not understand the file.
        """
        names = ("Kbuild", "Makefile") if directory else ("Kbuild",)
        kbuild = next((each for name in names if (each := self.source / directory / name).is_file()), None)
        if kbuild is None:
            return []
        variables = {
            "srctree": str(self.source),
            "objtree": str(self.objects),
            "src": str(self.source / directory),
            "obj": directory,
            "ARCH": ARCHITECTURE,
            "SRCARCH": "x86",
            "BITS": "64",
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
        """The compiler's warnings for some objects of the tree that was built last."""
        known = self._known_warnings()
        return {name: known.get(name, []) for name in objects}

    def _make_all(self, tree: PatchedTree, state: _State | None, jobs: int, goals: Sequence[str]) -> None:
        self._remember(_State())
        changed = self._switch(tree, state)
        if self._is_to_be_configured(state, changed):
            self._configure()
        self._make(jobs, goals)

    # What was there before

    def _recover(self) -> _State | None:
        """What the last use left, made usable again where it was interrupted; None where nothing is usable."""
        state = self._remembered()
        if state is None or not self.source.is_dir() or not self._index.is_file():
            for part in (self.source, self.objects):
                shutil.rmtree(part, ignore_errors=True)
            self._index.unlink(missing_ok=True)
            self._warnings_file.unlink(missing_ok=True)
            return None
        if not state.whole and self.objects.is_dir():
            self._step.note("the last build here was interrupted; going on from what it finished")
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
        """Wait for the compilers of a build whose orchestrate was killed; they still write into the objects."""
        deadline = time.monotonic() + _ORPHANS_S
        while _is_used(self.objects):
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"an interrupted build still runs in {self.objects}; end it and try again."
                )
            time.sleep(0.2)

    def _remove_half_written(self) -> None:
        """Remove every target that its command did not finish; make would take it for finished by its time.

        kbuild writes ``.TARGET.cmd`` after the target (scripts/Kbuild.include, cmd_and_fixdep), so a target that is
        newer was cut short. The last ones are removed too: their ``.cmd`` itself may have been cut short.
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
        """Make the work tree that of `tree`, and say which paths that changed; others keep their times."""
        self.source.mkdir(parents=True, exist_ok=True)
        self.objects.mkdir(parents=True, exist_ok=True)
        # An interrupted checkout leaves git's lock behind; ours is what keeps two builds apart.
        self._index.with_name("index.lock").unlink(missing_ok=True)
        repository = Repository(tree.repository)

        def git(*arguments: str, check: bool = False) -> Completed:
            config = ("core.sparseCheckout=false", "checkout.workers=0")
            return repository.git(
                *arguments, work_tree=self.source, index=self._index, config=config, check=check
            )

        changed: list[str] = []
        if state is None:
            self._step.note("laying out the source")
        else:
            if not state.whole:  # an interrupted checkout leaves files that no index knows
                git("clean", "-ffdxq")
            listed = git("diff-index", "--cached", "--name-only", "-z", tree.commit)
            if listed.returncode != 0:
                return self._switch_anew(tree)
            changed = listed.stdout.split("\0")[:-1]
        # It looks at every file, and so mends what was edited or deleted by hand too.
        if git("read-tree", "--reset", "-u", tree.commit, check=state is None).returncode != 0:
            return self._switch_anew(tree)
        if state is None:
            self._step.note("source laid out")
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
        """Make ``.config`` from nothing but the requests: what an earlier stage had on must not linger."""
        requests = self._place / "requests.config"
        requests.write_text(self._configuration.text, encoding="utf-8")
        for words in (["allnoconfig", f"KCONFIG_ALLCONFIG={requests}"], ["olddefconfig"]):
            done = self._run(words)
            if done.returncode != 0:
                self._blame(done)
        granted = (self.objects / ".config").read_text(encoding="utf-8")
        check_survived(self._configuration.requested, granted)

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

        # --output-sync: a compiler's messages stay together, behind the line that says what it compiles.
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
        # SIGTERM rather than SIGKILL when we die: make then ends the makes and compilers below it.
        return run(
            tied(self._command(words), "TERM"),
            env=self._environment(),
            log_file=self.log,
            on_line=on_line,
            check=False,
        )

    def _command(self, words: Sequence[str]) -> list[str]:
        compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
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
                f"ARCH={ARCHITECTURE}",
                "--no-print-directory",
            ),
            *(f"CC={compiler}", f"HOSTCC={compiler}", "KCONFIG_CONFIG=.config"),
            *(f"{name}={value}" for name, value in variables.items()),
            *words,
        ]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"LC_ALL": "C", **{name: "" for name in _UNSET if name in os.environ}}

    # What make said

    def _blame(self, done: Completed) -> None:
        """Raise what a failed make means."""
        lines = done.stdout.splitlines()
        trouble = host_trouble(lines)
        if trouble is not None:
            trouble.log = self.log
            raise trouble
        if done.returncode < 0:
            raise InfrastructureError(f"make was ended by signal {-done.returncode}; try again.", self.log)
        said = "\n".join(self._relative(line) for line in error_of(lines))
        raise DoesNotCompileError(said) if blames_source(lines) else _DamagedError(said)

    def _relative(self, line: str) -> str:
        return re.sub(r"^(?:\.\./)+", "", line.replace(f"{self.source}/", ""))

    def _keep_warnings(self, lines: Iterable[str]) -> None:
        """Remember the warnings of what was compiled: the next build compiles, and warns about, only a part."""
        known: dict[str, list[str]] = self._known_warnings()
        known.update(warnings_by_object(map(self._relative, lines)))
        text = json.dumps({name: said for name, said in known.items() if said}, indent=1)
        self._warnings_file.write_text(text, encoding="utf-8")

    def _known_warnings(self) -> dict[str, list[str]]:
        with suppress(OSError, ValueError):
            known = json.loads(self._warnings_file.read_text(encoding="utf-8"))
            return {name: said for name, said in known.items() if (self.objects / name).exists()}
        return {}


def _is_used(directory: Path) -> bool:
    """Whether a process works in `directory` or below."""
    import psutil

    for process in psutil.process_iter(["cwd"]):
        place = process.info["cwd"]
        if place and Path(place).is_relative_to(directory):
            return True
    return False


def _configures(path: str) -> bool:
    """Whether a file of the source takes part in making a configuration."""
    return (
        PurePosixPath(path).name.startswith("Kconfig")
        or path.startswith("scripts/")
        or path in ("Makefile", "arch/x86/Makefile")
    )
