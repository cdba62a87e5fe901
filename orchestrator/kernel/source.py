# SPDX-License-Identifier: GPL-2.0-only
"""The unpatched kernel source: Debian's package, a git tree, a directory or a tarball, imported once."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import Cache, file_digest
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Events, Step
from orchestrator.kernel.repository import Repository
from orchestrator.process import kill_group, run

_KIND = "source"
#: Better compression would cost most of the import's time; none at all, a gigabyte more to write.
_FAST = ("pack.compression=1", "core.fsync=none", "gc.auto=0")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$", re.MULTILINE)
#: What a kernel tree has, besides a Makefile with a version.
_LANDMARKS = ("Kbuild", "mm/Makefile", "init/main.c")


@dataclass(frozen=True)
class SourceTree:
    """A kernel source in a repository of the cache.

    Args:
        repository: its git directory.
        commit: a commit without parents; it depends on the content only.
        tree: its tree id.
        version: what the Makefile says, e.g. ``6.12.117``.
        description: where it came from, for a person.
    """

    repository: Path
    commit: str
    tree: str
    version: str
    description: str


@dataclass(frozen=True)
class _Origin:
    """A source before it is imported: what it is known by, and how its files come into a repository."""

    key: Mapping[str, str]
    description: str
    take: Callable[[Repository, Step], str]


def import_source(source: str | None, package: str, cache: Cache, events: Events) -> SourceTree:
    """Import a kernel source, or find it in the cache.

    Args:
        source: a git tree (``PATH`` or ``PATH#REF``), a directory, a tarball; None for `package`.
        package: Debian's source package, e.g. ``linux-source-6.12``: the installed one, else it is downloaded.

    Raises:
        UserError: there is no such source, or it is no kernel tree.
        InfrastructureError: the package cannot be downloaded.
    """
    origin = _origin(source, package)

    def make(directory: Path) -> None:
        with events.step("import source", origin.description) as step:
            repository = Repository.create(directory / "repository.git")
            tree = origin.take(repository, step)
            version = _version(repository, tree, origin.description)
            commit = repository.commit(tree, f"Linux {version}")
            repository.git("update-ref", "refs/heads/base", commit)
            facts = {"commit": commit, "tree": tree, "version": version, "description": origin.description}
            (directory / "source.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    directory = cache.obtain(_KIND, origin.key, make)
    facts = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return SourceTree(
        directory / "repository.git", facts["commit"], facts["tree"], facts["version"], facts["description"]
    )


def is_imported(source: str | None, package: str, cache: Cache) -> bool:
    """Whether :func:`import_source` would find it in the cache.

    Raises:
        UserError: there is no such source.
    """
    try:
        return cache.has(_KIND, _origin(source, package).key)
    except InfrastructureError:  # no package lists yet: then it is not imported either
        return False


def _origin(source: str | None, package: str) -> _Origin:
    if source is None:
        return _package(package)
    path, _, reference = source.partition("#")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(
            f"--source {source}: there is no {place}; name a kernel git tree, a directory or a tarball."
        )
    if place.is_file():
        return _tarball(place.resolve(), source)
    # Told apart by what git says, for a worktree's .git is a file and a bare tree has none.
    top = run(["git", "-C", str(place), "rev-parse", "--show-prefix"], check=False)
    if top.returncode == 0 and top.stdout.strip() == "":
        return _git_tree(place.resolve(), reference, source)
    if reference:
        raise UserError(f"--source {source}: {place} is no git tree, so it has no {reference}.")
    return _directory(place.resolve(), source)


def _package(package: str) -> _Origin:
    installed = run(["dpkg-query", "-W", "-f=${Status}\t${Version}", package], check=False)
    state, _, version = installed.stdout.partition("\t")
    archive = Path(f"/usr/src/{package}.tar.xz")
    if state.endswith(" installed") and archive.is_file():
        return _Origin(
            {"package": package, "version": version},
            f"{package} {version}",
            lambda r, s: _unpack(archive, r, s),
        )
    policy = run(["apt-cache", "policy", package], check=False, env={"LC_ALL": "C"}).stdout
    match = re.search(r"^\s*Candidate: (\S+)$", policy, re.MULTILINE)
    if match is None or match[1] == "(none)":
        raise InfrastructureError(
            f"no package {package} is known on this host; run `apt-get update`, or name a source with --source."
        )
    candidate = match[1]

    def take(repository: Repository, step: Step) -> str:
        with tempfile.TemporaryDirectory(prefix="orchestrate-source-") as directory:
            step.note("downloading")
            # apt refuses to drop privileges for a directory that its own user cannot enter.
            run(
                ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", f"{package}={candidate}"],
                cwd=Path(directory),
            )
            (deb,) = Path(directory).glob("*.deb")
            run(["dpkg-deb", "-x", str(deb), directory])
            return _unpack(Path(directory) / archive.relative_to("/"), repository, step)

    return _Origin({"package": package, "version": candidate}, f"{package} {candidate}", take)


def _tarball(path: Path, asked: str) -> _Origin:
    if not tarfile.is_tarfile(path):
        raise UserError(f"--source {asked}: this file is no tarball.")
    digest = file_digest(path)
    return _Origin(
        {"tarball": digest}, f"{path.name} (sha256 {digest[:12]})", lambda r, s: _unpack(path, r, s)
    )


def _directory(path: Path, asked: str) -> _Origin:
    _check_landmarks(path, asked)
    seen = hashlib.sha256()
    for each in _paths_of(path):
        status = each.lstat()
        seen.update(
            f"{each.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_mode}\n".encode()
        )

    return _Origin(
        {"directory": str(path), "fingerprint": seen.hexdigest()},
        f"directory {path.name}",
        lambda repository, step: _add(path, repository, step),
    )


def _git_tree(path: Path, reference: str, asked: str) -> _Origin:
    def git(*arguments: str) -> str:
        done = run(["git", "-C", str(path), *arguments], check=False)
        if done.returncode != 0:
            raise UserError(
                f"--source {asked}: git {arguments[0]} fails there: {done.stderr.strip() or 'no reason'}."
            )
        return done.stdout.strip()

    if reference:
        commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}")
    else:
        # Changes that are not committed yet are part of what the person sees, and become part of the source.
        commit = git("stash", "create") or git("rev-parse", "HEAD")
    tree = git("rev-parse", f"{commit}^{{tree}}")

    def take(repository: Repository, step: Step) -> str:
        repository.git(
            "fetch", "--quiet", "--depth=1", "--no-tags",
            "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true upload-pack",
            f"file://{path}", commit,
            config=("fetch.fsckObjects=false",),
        )  # fmt: skip
        return tree

    return _Origin({"tree": tree}, f"git {path.name} {reference or commit[:12]}", take)


def _unpack(archive: Path, repository: Repository, step: Step) -> str:
    """The tree of a tarball's files; they go straight into a pack and are never laid out on the disk."""

    def files() -> Iterator[_File]:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.isfile():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield _File(member.name, 0o100755 if member.mode & 0o100 else 0o100644, stream.read())
                elif member.issym():
                    yield _File(member.name, 0o120000, member.linkname.encode())

    try:
        return _import(files(), repository, step, strip_top=True)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise UserError(f"{archive.name} cannot be unpacked: {error}.") from error


def _add(directory: Path, repository: Repository, step: Step) -> str:
    def files() -> Iterator[_File]:
        for path in _paths_of(directory):
            name = str(path.relative_to(directory))
            if path.is_symlink():
                yield _File(name, 0o120000, os.fsencode(path.readlink()))
            else:
                yield _File(name, 0o100755 if path.stat().st_mode & 0o100 else 0o100644, path.read_bytes())

    return _import(files(), repository, step, strip_top=False)


def _paths_of(directory: Path) -> list[Path]:
    """Files and links below a directory, in an order that does not depend on the file system."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path for path in found if path.relative_to(directory).parts[0] != ".git")


@dataclass(frozen=True)
class _File:
    name: str
    mode: int
    content: bytes


def _import(files: Iterable[_File], repository: Repository, step: Step, strip_top: bool) -> str:
    """Write files as one tree with git-fast-import(1): one pack, where git-add(1) would write 85,000 objects.

    Args:
        strip_top: the files lie below one directory that is not part of the tree, as in a tarball.
    """
    importer = repository.spawn("fast-import", "--quiet", "--depth=0", "--done", config=_FAST)
    assert importer.stdin is not None
    out = importer.stdin
    try:
        out.write(
            b"commit refs/heads/import\ncommitter orchestrate <orchestrate@localhost> 946684800 +0000\n"
        )
        out.write(b"data 6\nimport\n")
        for count, file in enumerate(files, 1):
            name = file.name.removeprefix("./")
            name = name.partition("/")[2] if strip_top else name
            if not name:
                raise UserError(f"this is no kernel tree: {file.name} lies beside its top directory.")
            out.write(b"M %o inline %s\n" % (file.mode, _quoted(name)))
            out.write(b"data %d\n%s\n" % (len(file.content), file.content))
            if count % 500 == 0:
                step.progress(count, None, "files")
        out.write(b"done\n")
        out.close()
    except BrokenPipeError as error:
        raise InfrastructureError("git fast-import ended early; is the disk full?") from error
    finally:
        if not out.closed:
            kill_group(importer)
        status = importer.wait()
    if status != 0:
        raise InfrastructureError(f"git fast-import ended with status {status}; is the disk full?")
    return repository.git("rev-parse", "refs/heads/import^{tree}").stdout.strip()


def _quoted(name: str) -> bytes:
    raw = os.fsencode(name)
    if raw[:1] == b'"' or b"\n" in raw:
        raw = b'"' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
    return raw


def _check_landmarks(root: Path, asked: str) -> None:
    missing = next((name for name in ("Makefile", *_LANDMARKS) if not (root / name).is_file()), None)
    if missing:
        raise UserError(f"{asked} is no kernel tree: it has no {missing}; name the top of a kernel source.")


def _version(repository: Repository, tree: str, asked: str) -> str:
    makefile = repository.git("show", f"{tree}:Makefile", check=False)
    found = dict(_VERSION.findall(makefile.stdout))
    lists = repository.git("ls-tree", "-r", "--name-only", tree, "--", *_LANDMARKS).stdout.split()
    if not {"VERSION", "PATCHLEVEL"} <= found.keys() or len(lists) != len(_LANDMARKS):
        raise UserError(
            f"{asked} is no kernel tree: its Makefile has no version, or {', '.join(_LANDMARKS)} are missing."
        )
    numbers: list[str] = [found["VERSION"], found["PATCHLEVEL"], found.get("SUBLEVEL", "")]
    extra: str = found.get("EXTRAVERSION", "")
    return ".".join(filter(None, numbers)) + extra
