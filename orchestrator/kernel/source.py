# SPDX-License-Identifier: GPL-2.0-only
"""The baseline kernel source: Debian's package, a git tree, a directory or a tarball, imported once."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from orchestrator.cache import Artefact, Cache, file_digest
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events, Step
from orchestrator.kernel import suite
from orchestrator.kernel.package import PackageVersion, choose_version, download
from orchestrator.kernel.repository import ISOLATED, SAFE, Repository, git_command
from orchestrator.process import kill_group, run
from orchestrator.temporary import temporary_directory

_KIND = "source"
#: Largest file in a tarball in bytes; the largest of a kernel has 20 MB. A file is read into memory.
_LARGEST_MEMBER = 256 << 20
#: Higher compression would dominate the import time; without any, another gigabyte would be written.
_FAST = ("pack.compression=1", "fastimport.unpackLimit=0")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$", re.MULTILINE)
#: The address of a git repository on another host, as in git-clone(1), or of one on this host as a URL.
_ADDRESS = re.compile(r"(?:https?|git|ssh|file|git\+ssh)://|[\w.-]+@[\w.-]+:")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PACKAGE = re.compile(r"(?P<package>linux-source-\d+\.\d+)=(?P<version>\S+)")
#: Seconds for another host to list its branches.
_ANSWER_S = 60.0
#: Files that identify a kernel tree, besides a Makefile with a version.
_LANDMARKS = ("Kbuild", "mm/Makefile", "init/main.c")
#: Files that an in-tree build leaves behind; the kernel's Makefile (outputmakefile) then refuses to build out of tree.
_BUILT = (".config", "include/config", "arch/x86/include/generated")


@dataclass(frozen=True)
class SourceTree:
    """An imported kernel source, in a repository of the cache.

    Args:
        repository: its git directory.
        commit: a commit without parents, which depends only on the content.
        tree: its tree ID.
        version: kernel version in the Makefile, e.g. ``6.12.117``.
        description: its origin, for display.
        package: its package version; None if it is not from a package.
    """

    repository: Path
    commit: str
    tree: str
    version: str
    description: str
    package: PackageVersion | None = None


@dataclass(frozen=True)
class Origin:
    """A source before its import; created by :func:`find_origin`.

    Args:
        key: key in the cache.
        description: its origin, for display.
        take: imports its files into a repository and returns their tree ID.
        package: its package version; None if it is not from a package.
    """

    key: Mapping[str, str]
    description: str
    take: Callable[[Repository, Step], str]
    package: PackageVersion | None = None

    def is_imported(self, cache: Cache) -> bool:
        """Whether the source is in the cache."""
        return source_artefact(self, cache, Events()).is_made


def find_origin(source: str | None, package: str, cache: Cache, known: Sequence[str] = ()) -> Origin:
    """Find a kernel source without importing or downloading it.

    Args:
        source: a git tree (``PATH`` or ``PATH#REF``), the address of one, a directory, a tarball, ``PACKAGE=VERSION``,
            or ``debian:VERSION`` for a package of any suite; None for the version that :func:`choose_version` chooses.
        package: Debian's source package, e.g. ``linux-source-6.12``.
        known: versions of `package` that the series is checked on, newest first.

    Raises:
        UserError: there is no such source, or it is not a kernel tree.
        InfrastructureError: no version of the package is available on this host.
    """
    if source is None:
        return _package(package, known, cache)
    path, _, reference = source.partition("#")
    if _ADDRESS.match(path):
        return _remote(path, reference or "HEAD", source)
    place = Path(path).expanduser()
    if not place.exists():
        if (named := suite.parse(source)) is not None:
            return _of_suite(*named, cache)
        if (match := _PACKAGE.fullmatch(source)) and match["package"] != package:
            return _of_suite(match["package"], None, cache, match["version"])
        if source.startswith(f"{package}="):
            return _package(package, known, cache, source.removeprefix(f"{package}="))
        raise UserError(
            f"--source {source}: there is no {place}; name a kernel git tree or its address, a directory, a tarball, "
            f"{package}=VERSION, or debian:VERSION."
        )
    place = place.resolve()
    git_directory = next((each for each in (place / ".git", place) if _is_git(each)), None)
    if git_directory is not None:
        return _git_tree(place, git_directory, reference, source)
    if reference:
        raise UserError(f"--source {source}: {place} is not a git tree, so it has no {reference}.")
    return _directory(place, source) if place.is_dir() else _tarball(place, source)


def with_commit(source: str | None, commit: str | None) -> str | None:
    """The source at the commit that a series was made on, if it is a git tree that has it.

    Args:
        source: as for :func:`find_origin`; left as it is if it names a commit.
        commit: the commit, e.g. from ``base-commit:`` of a cover letter.
    """
    if source is None or commit is None or "#" in source or not is_git_tree(source):
        return source
    found = run(
        git_command(*SAFE, "-C", str(Path(source).expanduser()), "cat-file", "-e", f"{commit}^{{commit}}"),
        check=False,
    )
    return f"{source}#{commit}" if found.returncode == 0 else source


def has_changes(source: str) -> bool:
    """Whether a source is a local git tree with uncommitted changes, which are part of it unless it names a commit."""
    if "#" in source or not is_git_tree(source):
        return False
    place = str(Path(source).expanduser())
    return bool(run(git_command(*SAFE, "-C", place, "stash", "create"), check=False).stdout.strip())


def is_git_tree(source: str) -> bool:
    """Whether a source is a local git tree, with or without ``#REF``."""
    place = Path(source.partition("#")[0]).expanduser()
    return any(map(_is_git, (place / ".git", place)))


def source_artefact(origin: Origin, cache: Cache, events: Events) -> Artefact[SourceTree]:
    """A kernel source, to be imported or taken from the cache.

    Raises when it is obtained:
        UserError: it is not a kernel tree.
        InfrastructureError: the package cannot be downloaded.
    """

    def make(directory: Path) -> None:
        with events.step("import source", origin.description, like="source") as step:
            repository = Repository.create(directory / "repository.git")
            tree = origin.take(repository, step)
            version = _version(repository, tree, origin.description)
            commit = repository.commit(tree, f"Linux {version}")
            repository.git("update-ref", "refs/heads/base", commit)
            facts = {"commit": commit, "tree": tree, "version": version, "description": origin.description}
            (directory / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def load(directory: Path) -> SourceTree:
        facts = json.loads((directory / "source.json").read_text(encoding="utf-8"))
        return SourceTree(
            directory / "repository.git",
            facts["commit"],
            facts["tree"],
            facts["version"],
            origin.description,  # the same tree may have been imported under another name
            origin.package,
        )

    return Artefact(cache, _KIND, lambda: origin.key, make, load)


def import_source(
    source: str | None, package: str, cache: Cache, events: Events, known: Sequence[str] = ()
) -> SourceTree:
    """Find a kernel source and import it; see :func:`find_origin` and :func:`source_artefact`."""
    return source_artefact(find_origin(source, package, cache, known), cache, events).obtain()


def origin_commit(source: str | None, tree: str) -> str | None:
    """The commit that a source was imported from; None if it was not imported from a commit.

    Args:
        source: as for :func:`import_source`.
        tree: tree ID of the imported source; if it differs from that of the commit, there were uncommitted changes.
    """
    path, _, reference = (source or "").partition("#")
    place = Path(path).expanduser()
    if not source or not is_git_tree(path):
        return None
    words = ["-C", str(place), "rev-parse", "--verify", "--quiet"]
    ids = [
        run(git_command(*SAFE, *words, f"{reference or 'HEAD'}^{{{kind}}}"), check=False).stdout.strip()
        for kind in ("commit", "tree")
    ]
    return ids[0] if ids[1] == tree else None


def _is_git(path: Path) -> bool:
    # A work tree has .git, a directory or a file with its path; a bare repository is itself a git directory.
    return (path.name == ".git" and path.is_file()) or (
        (path / "HEAD").is_file() and (path / "objects").is_dir()
    )


def _package(package: str, known: Sequence[str], cache: Cache, exact: str | None = None) -> Origin:
    return _packaged(choose_version(package, known, _imported_versions(package, cache), exact))


def _packaged(chosen: PackageVersion, options: Sequence[str] = ()) -> Origin:
    """The source in a version of a package.

    Args:
        options: options of apt-get(8), to download it from another suite than those of this host.
    """

    def take(repository: Repository, step: Step) -> str:
        if chosen.archive is not None:
            return _unpack(chosen.archive, repository, step)
        with temporary_directory("source") as directory:
            step.note("downloading")
            return _unpack(download(chosen, Path(directory), options), repository, step)

    return Origin({"package": chosen.package, "version": chosen.version}, str(chosen), take, chosen)


def _imported_versions(package: str, cache: Cache) -> list[str]:
    """The versions of a package in the cache, most recently used first."""
    found: list[tuple[float, str]] = []
    for path in (cache.root / _KIND).glob("*/key.json"):
        try:
            key = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a damaged entry, which is made again when it is used
        # Skip entries with another generation of the cache layout: they would not be found.
        if key.get("package") == package and path.parent == cache.path(_KIND, key):
            found.append((path.stat().st_mtime, key["version"]))
    return [version for _, version in sorted(found, reverse=True)]


def _of_suite(package: str, name: str | None, cache: Cache, exact: str | None = None) -> Origin:
    imported = _imported_versions(package, cache)
    options: Sequence[str] = ()
    if exact is not None and exact in imported:
        chosen = PackageVersion(package, exact)
    else:
        try:
            chosen, options = suite.find(package, name, cache, exact)
        except InfrastructureError:
            if exact is not None or not imported:
                raise
            chosen = PackageVersion(package, imported[0])
    return _packaged(chosen, options)


def _tarball(path: Path, asked: str) -> Origin:
    if not tarfile.is_tarfile(path):
        raise UserError(
            f"--source {asked}: this file is not a tarball (plain, or compressed with gzip, bzip2 or xz)."
        )
    digest = file_digest(path)
    return Origin(
        {"tarball": digest},
        f"{path.name} (sha256 {digest[:12]})",
        lambda repository, step: _unpack(path, repository, step),
    )


def _directory(path: Path, asked: str) -> Origin:
    missing = next((name for name in ("Makefile", *_LANDMARKS) if not (path / name).is_file()), None)
    if missing:
        raise UserError(
            f"{asked} is not a kernel tree: it has no {missing}; name the top of a kernel source."
        )
    built = next((name for name in _BUILT if (path / name).exists()), None)
    if built:
        raise UserError(_was_built_in(asked, built))
    seen = hashlib.sha256()
    for name, status in _entries(path):
        seen.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_mode}\n".encode())
    return Origin(
        {"directory": str(path), "fingerprint": seen.hexdigest()},
        f"directory {path.name}",
        lambda repository, step: _add(path, repository, step),
    )


def _remote(address: str, reference: str, asked: str) -> Origin:
    """A git tree of another host. Only the commit is fetched, not its history."""
    commit = reference
    if not _COMMIT.fullmatch(reference):
        done = run(
            git_command("ls-remote", "--quiet", "--", address, reference, f"{reference}^{{}}"),
            env={**ISOLATED, "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"},
            check=False,
            timeout_s=_ANSWER_S,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[0].removeprefix("fatal: ")
            raise InfrastructureError(f"--source {asked}: git ls-remote failed: {reason.rstrip('.')}.")
        # A tag is followed by the commit that it names.
        found = {
            name: commit for commit, _, name in (line.partition("\t") for line in done.stdout.splitlines())
        }
        if not found:
            raise UserError(f"--source {asked}: {address} has no branch or tag {reference}.")
        names = (f"refs/tags/{reference}^{{}}", f"refs/tags/{reference}", f"refs/heads/{reference}")
        commit = next((found[name] for name in names if name in found), next(iter(found.values())))

    def take(repository: Repository, step: Step) -> str:
        step.note("fetching")
        done = repository.git(
            *("fetch", "--quiet", "--depth=1", "--no-tags", address, commit),
            config=("fetch.fsckObjects=false",),
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1].removeprefix("fatal: ")
            raise InfrastructureError(f"--source {asked}: git fetch failed: {reason.rstrip('.')}.")
        return repository.git("rev-parse", f"{commit}^{{tree}}").stdout.strip()

    name = address.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return Origin({"commit": commit}, f"git {name} {reference if commit != reference else commit[:12]}", take)


def _git_tree(place: Path, git_directory: Path, reference: str, asked: str) -> Origin:
    if git_directory.stat().st_uid != os.geteuid() and not reference:
        raise UserError(
            f"--source {asked}: {place} belongs to another user, so only its commits are read; name one, e.g. "
            f"--source {asked}#HEAD."
        )

    def git(*arguments: str, may_fail: bool = False) -> str:
        work_tree = [f"--work-tree={place}"] if git_directory != place else []
        argv = git_command(*SAFE, f"--git-dir={git_directory}", *work_tree, *arguments)
        done = run(argv, cwd=place, check=False)
        if done.returncode != 0 and not (may_fail and not done.stderr):
            reason = done.stderr.strip().removeprefix("fatal: ") or f"there is no {reference}"
            raise UserError(f"--source {asked}: git {arguments[0]} failed: {reason}.")
        return done.stdout.strip()

    if reference:
        commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}")
    elif git_directory == place:
        commit = git("rev-parse", "HEAD")
    else:
        # Uncommitted changes are part of the source, as the user sees them in the work tree. If only times changed,
        # git-stash(1) fails silently.
        commit = git("stash", "create", may_fail=True) or git("rev-parse", "HEAD")
    tree = git("rev-parse", f"{commit}^{{tree}}")

    def take(repository: Repository, step: Step) -> str:
        step.note("fetching")
        repository.git(
            "fetch", "--quiet", "--depth=1", "--no-tags",
            "--upload-pack=git -c safe.directory=* -c uploadpack.allowAnySHA1InWant=true upload-pack",
            f"file://{git_directory}", commit,
            config=("fetch.fsckObjects=false",),
        )  # fmt: skip
        return tree

    return Origin({"tree": tree}, f"git {place.name} {reference or commit[:12]}", take)


def _unpack(archive: Path, repository: Repository, step: Step) -> str:
    """The tree ID of a tarball's files, without the top directory that most tarballs have."""
    tree = read_archive(archive, repository, step)
    while True:
        top = repository.git("ls-tree", tree).stdout.splitlines()
        if len(top) != 1 or " tree " not in top[0]:
            return tree
        tree = top[0].split()[2]


def read_archive(archive: Path, repository: Repository, step: Step) -> str:
    """The tree ID of a tarball's files; they are written to a pack, never to disk as files.

    Raises:
        UserError: the tarball cannot be read.
    """

    def files() -> Iterator[_File]:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                _check_member(archive, member)
                if member.isfile():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield _File(member.name, 0o100755 if member.mode & 0o100 else 0o100644, stream.read())
                elif member.issym():
                    yield _File(member.name, 0o120000, member.linkname.encode())
                elif member.islnk():
                    yield _File(member.name, 0, member.linkname.encode())

    try:
        return _import(files(), repository, step)
    except (
        tarfile.TarError,
        EOFError,
        lzma.LZMAError,
        zlib.error,
        gzip.BadGzipFile,
        OSError,
        ValueError,
        OverflowError,
        KeyError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the host failed; a damaged archive has no errno
        raise UserError(f"{archive.name} cannot be unpacked: {error}.") from error


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    """Refuse a member that git could not check out, or that does not fit in memory.

    Raises:
        UserError: its name leaves the directory or is in a git directory, or it is too large.
    """
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or any(part.lower() == ".git" for part in parts):
        raise UserError(
            f"{archive.name} has a file named {member.name[:200]!r}, which a kernel source cannot have; "
            "name the tarball of a release, or a git tree."
        )
    if member.isfile() and member.size > _LARGEST_MEMBER:
        raise UserError(
            f"{archive.name} has the file {member.name[:200]!r} with {member.size / 2**20:.0f} MiB; "
            "no file of a kernel source is that large."
        )


def _add(directory: Path, repository: Repository, step: Step) -> str:
    def files() -> Iterator[_File]:
        for name, status in _entries(directory):
            path = directory / name
            if stat.S_ISLNK(status.st_mode):
                yield _File(name, 0o120000, os.fsencode(path.readlink()))
            else:
                yield _File(name, 0o100755 if status.st_mode & 0o100 else 0o100644, path.read_bytes())

    return _import(files(), repository, step)


def _entries(directory: Path) -> list[tuple[str, os.stat_result]]:
    """Files and symlinks below a directory with their status, in an order independent of the file system."""
    found: list[tuple[str, os.stat_result]] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(directory / below) as entries:
            for entry in entries:
                name = f"{below}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if name != ".git":
                        pending.append(f"{name}/")
                elif entry.is_symlink() or entry.is_file():
                    found.append((name, entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda each: each[0])


@dataclass(frozen=True)
class _File:
    """A file for git-fast-import(1): `mode` is the git mode, or 0 if `content` names an earlier file."""

    name: str
    mode: int
    content: bytes


def _import(files: Iterable[_File], repository: Repository, step: Step) -> str:
    """Write files as one tree with git-fast-import(1), which writes one pack; git-add(1) would write 85,000 files."""
    with tempfile.TemporaryFile() as said:
        importer = repository.spawn(
            "fast-import", "--quiet", "--depth=0", "--done", config=_FAST, stderr=cast("IO[bytes]", said)
        )
        assert importer.stdin is not None
        out = importer.stdin
        try:
            out.write(
                b"commit refs/heads/import\ncommitter orchestrate <orchestrate@localhost> 946684800 +0000\n"
            )
            out.write(b"data 6\nimport\n")
            for count, file in enumerate(files, 1):
                name = _quoted(os.fsencode(file.name.removeprefix("./")))
                if file.mode:
                    out.write(b"M %o inline %s\n" % (file.mode, name))
                    out.write(b"data %d\n%s\n" % (len(file.content), file.content))
                else:
                    out.write(b"C %s %s\n" % (_quoted(file.content.removeprefix(b"./")), name))
                if count % 500 == 0:
                    step.progress(count, None, "files")
            out.write(b"done\n")
            out.close()
        except BrokenPipeError:
            pass  # it ended early; its status and last message tell why
        except BaseException:
            kill_group(importer)
            raise
        finally:
            with suppress(BrokenPipeError):
                out.close()
            status = importer.wait()
        if status != 0:
            said.seek(0)
            reasons = [
                line for line in said.read().decode(errors="replace").splitlines() if "fatal: " in line
            ]
            reason = reasons[0].removeprefix("fatal: ") if reasons else f"status {status}"
            raise InfrastructureError(f"git fast-import rejected the source: {reason}.")
    return repository.git("rev-parse", "refs/heads/import^{tree}").stdout.strip()


def _quoted(name: bytes) -> bytes:
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def _was_built_in(asked: str, built: str) -> str:
    return (
        f"{asked} contains an in-tree build ({built}), and kbuild then refuses to build out of tree; "
        "run `make mrproper` there, or name a git tree."
    )


def _version(repository: Repository, tree: str, asked: str) -> str:
    wanted = ("Makefile", *_LANDMARKS)
    paths = repository.git("ls-tree", "--name-only", tree, "--", *wanted, *_BUILT).stdout.splitlines()
    missing = next((name for name in wanted if name not in paths), None)
    if missing:
        raise UserError(
            f"{asked} is not a kernel tree: it has no {missing}; name the top of a kernel source."
        )
    built = next((name for name in _BUILT if name in paths), None)
    if built:
        raise UserError(_was_built_in(asked, built))
    found = dict(_VERSION.findall(repository.git("show", f"{tree}:Makefile").stdout))
    if not {"VERSION", "PATCHLEVEL"} <= found.keys():
        raise UserError(f"{asked} is not a kernel tree: its Makefile has no VERSION and PATCHLEVEL.")
    numbers: list[str] = [found["VERSION"], found["PATCHLEVEL"], found.get("SUBLEVEL", "")]
    extra: str = found.get("EXTRAVERSION", "")
    return ".".join(filter(None, numbers)) + extra
