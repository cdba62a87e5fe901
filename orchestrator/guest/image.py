# SPDX-License-Identifier: GPL-2.0-only
"""The guest's root file system, built from the recipe in ``vm_images/guest`` without root.

It has busybox, an SSH server with its shared libraries, an init script, and the statically linked programs of this
project. Debian programs that only some workloads need are in layers, which are added on request. An image is
identified by the digest of all its inputs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, reduce
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator.cache import Artefact, Cache, file_digest
from orchestrator.document import Shape, read_document
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events
from orchestrator.guest.archive import ArchiveEntry, archive
from orchestrator.guest.keys import Keys, keys_artefact
from orchestrator.guest.packages import Package, find_packages, root_of
from orchestrator.guest.selftests import Selftests
from orchestrator.kernel.build_log import host_trouble
from orchestrator.process import require, run, version_of
from orchestrator.project import Project

#: Increase it when the way an image is built changes.
_GENERATION = 2
#: Directories of the guest's programs: those that the tool calls, and the workloads, which are kept apart because
#: they may have the names of shell tools.
TOOLS = "/usr/bin"
WORKLOADS = "/usr/lib/workloads"
_ELF = b"\x7fELF"
#: Name of all guests in known_hosts: they have different ports, but the same key.
HOST_ALIAS = "orchestrate-guest"
_LIBRARY_DIRECTORIES = (
    "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib", "usr/lib64", "lib64",
)  # fmt: skip
_COMPILER = (
    "gcc", "-std=gnu11", "-static", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-s",
)  # fmt: skip


@dataclass(frozen=True)
class GuestImage:
    """A guest image in the cache.

    Args:
        directory: directory of the files below.
        digest: digest of all inputs.
    """

    directory: Path
    digest: str

    @property
    def initramfs(self) -> Path:
        """The initramfs for the kernel."""
        return self.directory / "initramfs"

    @property
    def client_key(self) -> Path:
        """The private key that the guest accepts."""
        return self.directory / "client_key"

    @property
    def host_key_public(self) -> Path:
        """The host key of the guest: type and base64 on one line. No other key is accepted."""
        return self.directory / "host_key.pub"

    @property
    def known_hosts(self) -> Path:
        """The same key as a file for ssh(1), under the alias :data:`HOST_ALIAS`."""
        return self.directory / "known_hosts"

    @property
    def manifest(self) -> Path:
        """A JSON file with the inputs (packages, sources, compiler) and every file with mode and size."""
        return self.directory / "manifest.json"


@dataclass(frozen=True)
class Recipe:
    """``recipe.toml``, checked.

    Args:
        directory: directory of the recipe and of the files that it names.
        packages: Debian package -> absolute paths to copy from it.
        libraries: packages to search for shared libraries.
        applets: path of busybox, which lists the links to create for its applets.
        symlinks: path -> target.
        files: path in the guest -> file name in `directory`, and mode.
        nodes: path of a device node -> major, minor, mode.
        programs: path in the guest -> subdirectory of `directory` with the C sources of that program; the common
            code of the workloads is linked to it.
        selftests: path in the guest -> program of the kernel's tools/testing/selftests/mm.
        layers: files of the added layers.
    """

    directory: Path
    compression: str
    directories: tuple[str, ...]
    packages: Mapping[str, tuple[str, ...]]
    libraries: tuple[str, ...]
    applets: str
    symlinks: Mapping[str, str]
    files: Mapping[str, tuple[Path, int]]
    nodes: Mapping[str, tuple[int, int, int]]
    programs: Mapping[str, Path] = field(default_factory=dict)
    selftests: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Path, ...] = ()

    @property
    def tools(self) -> dict[str, Path]:
        """Program name -> C source, for the programs that the tool calls in the guest."""
        return {path.stem: path for path in sorted((self.directory / "tools").glob("*.c"))}


@dataclass(frozen=True)
class _LibrariesTable(Shape):
    """``[libraries]``."""

    packages: tuple[str, ...]


@dataclass(frozen=True)
class _AppletsTable(Shape):
    """``[applets]``."""

    program: str


@dataclass(frozen=True)
class _FileTable(Shape):
    """``[[files]]``."""

    path: str
    source: str
    mode: int = 0o644


@dataclass(frozen=True)
class _NodeTable(Shape):
    """``[[nodes]]``."""

    path: str
    major: int
    minor: int
    mode: int


@dataclass(frozen=True)
class _RecipeFile(Shape):
    """``recipe.toml``."""

    compression: Literal["none", "gzip"]
    directories: tuple[str, ...]
    packages: dict[str, tuple[str, ...]]
    libraries: _LibrariesTable
    applets: _AppletsTable
    symlinks: dict[str, str]
    files: tuple[_FileTable, ...]
    nodes: tuple[_NodeTable, ...]


@dataclass(frozen=True)
class _LayerFile(Shape):
    """``layers/<name>.toml``."""

    packages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    libraries: _LibrariesTable = field(default_factory=lambda: _LibrariesTable(()))
    symlinks: dict[str, str] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    selftests: dict[str, str] = field(default_factory=dict)


def load_recipe(directory: Path) -> Recipe:
    """Read ``recipe.toml`` in `directory`.

    Raises:
        UserError: the file is missing, or an entry is invalid; the message names file and key.
    """
    path = directory / "recipe.toml"
    recipe = read_document(path, _RecipeFile, "this image recipe").content
    return Recipe(
        directory,
        recipe.compression,
        recipe.directories,
        recipe.packages,
        recipe.libraries.packages,
        recipe.applets.program,
        recipe.symlinks,
        {entry.path: (directory / entry.source, entry.mode) for entry in recipe.files},
        {entry.path: (entry.major, entry.minor, entry.mode) for entry in recipe.nodes},
    )


def with_layer(recipe: Recipe, name: str) -> Recipe:
    """`recipe` with the contents of ``layers/<name>.toml`` added.

    Raises:
        UserError: there is no such layer, or an entry in it is invalid.
    """
    path = recipe.directory / "layers" / f"{name}.toml"
    there = sorted(each.stem for each in path.parent.glob("*.toml"))
    if name not in there:
        raise UserError(
            f"the guest image has no layer {name!r}; the layers are {', '.join(there) or 'none'}."
        )
    document = read_document(path, _LayerFile, "this image layer")
    layer = document.content
    programs = {place: recipe.directory / directory for place, directory in layer.programs.items()}
    for place, directory in programs.items():
        if not any(directory.glob("*.c")):
            raise document.fault(["programs", place], f"there is no C source in {directory}")
    return replace(
        recipe,
        packages={**recipe.packages, **layer.packages},
        libraries=tuple(dict.fromkeys((*recipe.libraries, *layer.libraries.packages))),
        symlinks={**recipe.symlinks, **layer.symlinks},
        programs={**recipe.programs, **programs},
        selftests={**recipe.selftests, **layer.selftests},
        layers=(*recipe.layers, path),
    )


def image_artefact(
    project: Project,
    cache: Cache,
    events: Events,
    layers: Sequence[str] = (),
    selftests: Callable[[], Artefact[Selftests]] | None = None,
) -> Artefact[GuestImage]:
    """The guest image of `project` as it is now, to be built or taken from the cache.

    Args:
        layers: names of ``vm_images/guest/layers/*.toml`` to add.
        selftests: the kernel's own, for layers that contain some of them; None if they are not available, and
            hence no image with them.

    Raises when it is obtained:
        UserError: the recipe is invalid, or a workload does not compile.
        InfrastructureError: a package, a library or the compiler is missing.
    """
    image = _Image(project, cache, events, layers, selftests)
    return Artefact(
        cache,
        "image",
        image.key,
        image.make,
        _loaded,
        image.prepare,
    )


def _loaded(directory: Path) -> GuestImage:
    image = GuestImage(directory, directory.name)
    with suppress(OSError):  # an image of an earlier version, whose initramfs everybody could read
        if image.initramfs.stat().st_mode & 0o077:
            image.initramfs.chmod(0o600)
    return image


def compile_workload(workloads: Path, name: str, program: Path) -> None:
    """Compile the program of a workload in the same way as for the guest.

    Args:
        workloads: directory ``guest_workloads``.
        name: name of the workload.
        program: output file.

    Raises:
        UserError: it does not compile.
        InfrastructureError: the compiler is missing.
    """
    require("gcc")
    _compile(program, _with_common(workloads / name, workloads / "common"))


def _with_common(directory: Path, common: Path) -> list[str]:
    """The compiler's arguments for a program and the common code."""
    sources = [*sorted(directory.glob("*.c")), *sorted(common.glob("*.c"))]
    return [*map(str, sources), f"-I{common}", "-lm"]


def _compile(program: Path, arguments: Sequence[str]) -> None:
    done = run([*_COMPILER, *arguments, "-o", str(program)], check=False)
    if done.returncode != 0:
        trouble = host_trouble(done.stderr.splitlines())
        if trouble is not None:
            raise trouble
        if done.returncode < 0:
            raise InfrastructureError(
                f"the compiler of the guest program {program.name} was killed by signal {-done.returncode}."
            )
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise UserError(f"the guest program {program.name} does not compile: {first.strip()}")


def workload_sources(workloads: Path) -> dict[str, Path]:
    """Program name -> directory of its C sources, for all workloads that have a program.

    Args:
        workloads: directory ``guest_workloads``; its ``common`` is linked to every program.
    """
    return {
        directory.name: directory
        for directory in sorted(workloads.iterdir())
        if directory.name != "common" and (directory / f"{directory.name}.c").is_file()
    }


class _Image:
    """One build of an image: computes its key, then builds it."""

    def __init__(
        self,
        project: Project,
        cache: Cache,
        events: Events,
        layers: Sequence[str],
        selftests: Callable[[], Artefact[Selftests]] | None,
    ) -> None:
        self._workloads = project.guest_workloads
        self._cache = cache
        self._events = events
        self._keys_artefact = keys_artefact(cache)
        self._recipe = reduce(with_layer, layers, load_recipe(project.vm_images / "guest"))
        self._selftests_of = selftests

    def prepare(self) -> None:
        """Make what goes into the image."""
        self._keys_artefact.obtain()
        if self._recipe.selftests:
            assert self._selftests_artefact is not None, "this layer needs the kernel's selftests"
            self._selftests_artefact.obtain()

    @cached_property
    def _keys(self) -> Keys:
        return self._keys_artefact.obtain()

    @cached_property
    def _selftests_artefact(self) -> Artefact[Selftests] | None:
        """The kernel's selftests; to describe them imports the source, so only if a layer needs them."""
        return self._selftests_of() if self._recipe.selftests and self._selftests_of else None

    @cached_property
    def _selftests(self) -> Selftests | None:
        return self._selftests_artefact.obtain() if self._selftests_artefact else None

    @cached_property
    def _packages(self) -> Mapping[str, Package]:
        return find_packages((*self._recipe.packages, *self._recipe.libraries), self._cache)

    def key(self) -> dict[str, Any] | None:
        """All inputs of the image; None while the SSH keys or the kernel's selftests are not made."""
        if not self._keys_artefact.is_made:
            return None
        if self._recipe.selftests and not (self._selftests_artefact and self._selftests_artefact.is_made):
            return None
        return self._inputs

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        recipe = self._recipe
        inputs = [recipe.directory / "recipe.toml", *(path for path, _ in recipe.files.values())]
        inputs += [*recipe.tools.values(), *recipe.layers]
        for name in ("common", *workload_sources(self._workloads)):
            inputs += sorted((self._workloads / name).glob("*.[ch]"))
        for directory in recipe.programs.values():
            inputs += sorted(directory.glob("*.[ch]"))
        library = _static_libc()
        if not library.is_absolute():
            raise InfrastructureError(
                "there is no static C library on this host; install the Debian package libc6-dev."
            )
        return {
            "generation": _GENERATION,
            "inputs": {f"{path.parent.name}/{path.name}": _digest_of_input(path) for path in inputs},
            "packages": {name: package.version for name, package in self._packages.items()},
            "compiler": [version_of("gcc"), *_COMPILER],
            "libc": file_digest(library),
            "keys": self._keys.fingerprint,
            # Identified by their inputs, like everything in the cache.
            **({"selftests": self._selftests.archive.parent.name} if self._selftests else {}),
        }

    def make(self, directory: Path) -> None:
        """Build the image in an empty directory."""
        named = "".join(f" with {layer.stem}" for layer in self._recipe.layers)
        with self._events.step(f"guest image{named}", like="image"):
            self._fill(directory)

    def _fill(self, directory: Path) -> None:
        entries = self._entries(directory / "programs")
        shutil.rmtree(directory / "programs")
        image = GuestImage(directory, "")
        data = archive(entries)
        if self._recipe.compression == "gzip":
            data = gzip.compress(data, 9, mtime=0)
        image.initramfs.touch(mode=0o600)  # it contains the private host key
        image.initramfs.write_bytes(data)
        image.client_key.touch(mode=0o600)
        image.client_key.write_bytes(self._keys.client.read_bytes())
        image.host_key_public.write_text(self._keys.host_public + "\n")
        image.known_hosts.write_text(f"{HOST_ALIAS} {self._keys.host_public}\n")
        contents = {
            path: {
                "mode": f"{entry.mode:o}",
                "bytes": len(entry.content),
                # The host key is secret, and so is everything that could confirm a guess of it.
                **({"sha256": hashlib.sha256(entry.content).hexdigest()} if entry.mode & 0o044 else {}),
            }
            for path, entry in sorted(entries.items())
        }
        manifest = {**self._inputs, "files": contents}
        image.manifest.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")

    def _entries(self, scratch: Path) -> dict[str, ArchiveEntry]:
        recipe = self._recipe
        entries = {path: ArchiveEntry.directory() for path in recipe.directories}
        entries["/tmp"] = ArchiveEntry(entries.get("/tmp", ArchiveEntry.directory()).mode | 0o1777)
        entries |= {path: ArchiveEntry.symlink(target) for path, target in recipe.symlinks.items()}
        entries |= {
            path: ArchiveEntry.file(source.read_bytes(), mode)
            for path, (source, mode) in recipe.files.items()
        }
        entries |= {
            path: ArchiveEntry.character_device(major, minor, mode)
            for path, (major, minor, mode) in recipe.nodes.items()
        }
        taken = self._from_packages()
        programs = {path for path, source in taken.items() if _is_program(source)}
        entries |= {
            path: ArchiveEntry.file(source.read_bytes(), 0o755 if path in programs else 0o644)
            for path, source in taken.items()
        }
        listed = run([str(taken[recipe.applets].resolve()), "--list-full"]).stdout.split()
        for applet in listed:
            entries.setdefault(f"/{applet}", ArchiveEntry.symlink(recipe.applets))
        entries |= self._libraries([taken[path] for path in taken if path in programs])
        entries |= self._programs(scratch)
        entries |= self._from_selftests()
        entries |= {
            "/root": ArchiveEntry(ArchiveEntry.directory().mode & ~0o077),
            "/root/.ssh": ArchiveEntry(ArchiveEntry.directory().mode & ~0o077),
            "/root/.ssh/authorized_keys": ArchiveEntry.file(f"{self._keys.client_public}\n".encode(), 0o600),
            "/etc/dropbear/host_key": ArchiveEntry.file(self._keys.host_dropbear, 0o600),
        }
        return _through_links(entries)

    def _from_packages(self) -> dict[str, Path]:
        taken = {}
        for name, paths in self._recipe.packages.items():
            root = root_of(self._packages[name], self._cache)
            for path in paths:
                source = next((each for each in _places(root, path) if each.is_file()), None)
                if source is None:
                    raise InfrastructureError(
                        f"the package {name} {self._packages[name].version} has no {path}, which "
                        f"{self._recipe.directory / 'recipe.toml'} copies from it."
                    )
                taken[path] = source
        return taken

    def _from_selftests(self) -> dict[str, ArchiveEntry]:
        """The kernel's selftests. They need only the C library, which the SSH server needs as well."""
        entries: dict[str, ArchiveEntry] = {}
        if self._selftests is None:
            return entries
        with tarfile.open(self._selftests.archive) as packed:
            for place, name in self._recipe.selftests.items():
                if name not in self._selftests.built:
                    raise InfrastructureError(
                        f"the kernel's selftest {name}, which a layer needs, was not built.",
                        self._selftests.log,
                    )
                member = packed.extractfile(name)
                assert member is not None
                entries[place] = ArchiveEntry.file(member.read(), 0o755)
        return entries

    def _libraries(self, programs: Sequence[Path]) -> dict[str, ArchiveEntry]:
        """The loader and all shared libraries that `programs` need, directly or indirectly."""
        roots = [root_of(self._packages[name], self._cache) for name in self._recipe.libraries]
        found: dict[str, ArchiveEntry] = {}
        todo = list(programs)
        while todo:
            interpreter, needed = needed_libraries(todo.pop())
            wanted = {library: f"/usr/lib/x86_64-linux-gnu/{library}" for library in needed}
            if interpreter:
                wanted[posixpath.basename(interpreter)] = interpreter
            for library, place in wanted.items():
                if place in found:
                    continue
                source = find_library(library, roots)
                found[place] = ArchiveEntry.file(source.read_bytes(), 0o755)
                todo.append(source)
        return found

    def _programs(self, scratch: Path) -> dict[str, ArchiveEntry]:
        """Compile the guest's programs in parallel."""
        scratch.mkdir()
        common = self._workloads / "common"
        jobs = {
            f"{WORKLOADS}/{name}": _with_common(directory, common)
            for name, directory in workload_sources(self._workloads).items()
        }
        jobs |= {place: _with_common(directory, common) for place, directory in self._recipe.programs.items()}
        jobs |= {f"{TOOLS}/{name}": [str(source)] for name, source in self._recipe.tools.items()}

        def compiled(job: tuple[str, list[str]]) -> tuple[str, ArchiveEntry]:
            place, arguments = job
            program = scratch / posixpath.basename(place)
            _compile(program, arguments)
            return place, ArchiveEntry.file(program.read_bytes(), 0o755)

        with ThreadPoolExecutor() as pool:
            return dict(pool.map(compiled, jobs.items()))


@lru_cache(maxsize=1)
def _static_libc() -> Path:
    """Path of the static C library that the compiler links; a relative path if there is none."""
    require("gcc")
    return Path(run([*_COMPILER, "-print-file-name=libc.a"]).stdout.strip())


def needed_libraries(program: Path) -> tuple[str | None, tuple[str, ...]]:
    """The loader (PT_INTERP) and the shared libraries (DT_NEEDED) of an ELF file; None and () if it is static.

    Raises:
        InfrastructureError: it is not an ELF file.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        elf = ELFFile(io.BytesIO(program.read_bytes()))
        interpreter = None
        needed: list[str] = []
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
            elif isinstance(segment, DynamicSegment):
                needed += [cast(Any, tag).needed for tag in segment.iter_tags("DT_NEEDED")]
    except ELFError as error:
        raise InfrastructureError(f"{program} is not an ELF program ({error}).") from error
    return interpreter, tuple(needed)


def _is_program(path: Path) -> bool:
    """Whether a file of a package is a program or a library, and not data."""
    with path.open("rb") as stream:
        return stream.read(len(_ELF)) == _ELF


def _places(root: Path, path: str) -> list[Path]:
    """Paths where a package may have a file: Debian packages are moving files from ``/bin`` to ``/usr/bin``."""
    below = path.removeprefix("/usr").lstrip("/")
    return [root / path.lstrip("/"), root / "usr" / below, root / below]


def find_library(name: str, roots: Sequence[Path]) -> Path:
    """The file of the shared library `name` below the first of `roots` that has it.

    Raises:
        InfrastructureError: none of them has it.
    """
    for root in roots:
        for directory in _LIBRARY_DIRECTORIES:
            candidate = root / directory / name
            if candidate.is_file():
                return candidate
    raise InfrastructureError(
        f"the shared library {name} is in none of the packages that the image recipe lists; add its package."
    )


def _through_links(entries: Mapping[str, ArchiveEntry]) -> dict[str, ArchiveEntry]:
    """Move files below a symlinked directory (/lib64/ld.so) to the target of the link (/usr/lib64/ld.so)."""
    links = {
        path: posixpath.join(posixpath.dirname(path), entry.content.decode())
        for path, entry in entries.items()
        if entry.mode & 0o170000 == 0o120000
    }
    moved: dict[str, ArchiveEntry] = {}
    for path, entry in entries.items():
        for link, target in links.items():
            if path.startswith(f"{link}/"):
                path = target + path[len(link) :]
        moved[path] = entry
    return moved


def _digest_of_input(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: the image recipe names this file, but it cannot be read.") from error
