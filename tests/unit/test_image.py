# SPDX-License-Identifier: GPL-2.0-only
"""The image's parts, and whole images of a toy project whose only package is a toy busybox."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import paramiko
import pytest
from guest_data import ROOT
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cache import Cache
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.events import Event, Events
from orchestrator.guest.archive import ArchiveEntry, archive
from orchestrator.guest.image import (
    compile_workload,
    find_library,
    image_artefact,
    load_recipe,
    needed_libraries,
    with_layer,
)
from orchestrator.guest.keys import keys_artefact
from orchestrator.guest.packages import Package, find_packages, root_of
from orchestrator.guest.workload import Workload, load_workloads
from orchestrator.process import Completed
from orchestrator.project import Project

RECIPE = """
compression = "none"
directories = ["/proc", "/tmp"]
[packages]
toybox = ["/bin/busybox"]
[libraries]
packages = ["toyc"]
[applets]
program = "/bin/busybox"
[symlinks]
"/lib64" = "usr/lib64"
[[files]]
source = "init"
path = "/init"
mode = 0o755
[[nodes]]
path = "/dev/console"
major = 5
minor = 1
mode = 0o600
"""
HEADER = 110


def unpack(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read a newc archive: path -> mode, content, device."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, length, _ = fields
        assert (uid, gid, mtime) == (0, 0, 0)
        name = data[at + HEADER : at + HEADER + length - 1].decode()
        at += HEADER + length
        at += -at % 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = (mode, data[at : at + size], (major, minor))
        at += size
        at += -at % 4


@given(
    st.dictionaries(st.from_regex(r"(/[a-z]{1,5}){1,3}", fullmatch=True), st.binary(max_size=9), max_size=6)
)
def test_an_archive_holds_every_file_after_its_parents(files: dict[str, bytes]) -> None:
    # A path that is also a parent cannot be a file.
    entries = {
        path: ArchiveEntry.file(content)
        for path, content in files.items()
        if not any(other.startswith(f"{path}/") for other in files)
    }
    found = unpack(archive(entries))
    assert {f"/{name}": content for name, (mode, content, _) in found.items() if stat.S_ISREG(mode)} == {
        path: entry.content for path, entry in entries.items()
    }
    names = list(found)
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    data = archive(
        {
            "/etc/motd": ArchiveEntry.file(b"hello\n", 0o600),
            "/bin": ArchiveEntry.symlink("usr/bin"),
            "/dev/null": ArchiveEntry.character_device(1, 3, 0o666),
        }
    )
    listing = subprocess.run(["cpio", "-tvn"], input=data, capture_output=True, check=True).stdout.decode()
    lines = {line.split()[-1]: line for line in listing.splitlines()}
    assert lines["etc/motd"].startswith("-rw-------") and "bin -> usr/bin" in listing
    assert lines["dev/null"].startswith("crw-rw-rw-") and "1,   3" in lines["dev/null"]


def test_keys_are_made_once_and_understood_by_both_sides(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert keys_artefact(cache).existing() is None
    keys = keys_artefact(cache).obtain()
    assert keys_artefact(cache).obtain() == keys_artefact(cache).existing() == keys
    assert keys.client.stat().st_mode & 0o077 == 0
    client = paramiko.Ed25519Key.from_private_key_file(str(keys.client))
    assert keys.client_public == f"ssh-ed25519 {client.get_base64()}"
    # dropbear: the type, then 64 bytes that end with the public key.
    data = keys.host_dropbear
    assert data[:15] == b"\0\0\0\x0bssh-ed25519" and data[15:19] == b"\0\0\0\x40" and len(data) == 83
    public = paramiko.Message(base64.b64decode(keys.host_public.split()[1]))
    assert public.get_text() == "ssh-ed25519" and data[-32:] == public.get_binary()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('compression = "none"', 'compression = "rar"', "compression: 'rar': choose none or gzip"),
        ('compression = "none"', "", "compression: this key is missing"),
        ("[symlinks]", "[symlink]", "symlink: unknown key; did you mean symlinks?"),
        ("major = 5", "majr = 5", "nodes 1: majr: unknown key; did you mean major?"),
        ("[packages]", "packages = 1\n[other]", "other: unknown key; known are compression"),
        ("[symlinks]", "[symlinks", "cannot read this image recipe"),
    ],
)
def test_a_fault_of_a_recipe_is_reported_with_file_and_key(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    assert old in RECIPE
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path)
    assert str(tmp_path / "recipe.toml") in str(error.value) and fault in str(error.value)


def test_the_projects_recipe_is_sound() -> None:
    recipe = load_recipe(ROOT / "vm_images" / "guest")
    assert all(path.is_file() for path, _ in recipe.files.values())
    assert {"argv-exec", "sampler", "khugepaged-barrier"} <= set(recipe.tools)


@pytest.mark.parametrize("workload", load_workloads(ROOT / "guest_workloads").values(), ids=lambda w: w.name)
def test_the_layers_that_workloads_need_are_there_and_sound(workload: Workload) -> None:
    recipe = load_recipe(ROOT / "vm_images" / "guest")
    for layer in workload.layers:
        grown = with_layer(recipe, layer)
        assert grown.packages.keys() > recipe.packages.keys() or grown.selftests


def test_the_projects_init_says_it_is_ready_and_is_valid_shell() -> None:
    init = ROOT / "vm_images" / "guest" / "init"
    subprocess.run(["sh", "-n", str(init)], check=True)
    assert 'echo "orchestrate: ready"' in init.read_text()


def test_libraries_are_found_in_their_packages(tmp_path: Path) -> None:
    interpreter, needed = needed_libraries(Path(sys.executable).resolve())
    assert interpreter and any(name.startswith("libc.so") for name in needed)
    directory = tmp_path / "b" / "usr" / "lib"
    directory.mkdir(parents=True)
    (directory / "libx.so").touch()
    assert find_library("libx.so", [tmp_path / "a", tmp_path / "b"]) == directory / "libx.so"
    with pytest.raises(InfrastructureError, match=r"liby\.so is in none of the packages"):
        find_library("liby.so", [tmp_path / "b"])
    (directory / "text").write_text("#!/bin/sh\n")
    with pytest.raises(InfrastructureError, match="is not an ELF program"):
        needed_libraries(directory / "text")


class FakeDebian:
    """dpkg and apt of a host that lacks the package ``other``."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def __call__(self, argv: list[str], cwd: Path | None = None, check: bool = True) -> Completed:
        self.ran.append(argv)
        out, status = "", 0
        if argv[0] == "dpkg-query":
            out, status = ("here installed 1.0\ngone config-files 0.9\n", 1) if "here" in argv else ("", 1)
        elif argv[0] == "apt-cache":
            out = "Package: other\nVersion: 2:3.1-4\nSize: 5\n\n" if "other" in argv else ""
        elif argv[:2] == ["apt-get", "download"]:
            assert cwd
            (cwd / "other.deb").write_text("a package")
        elif argv[0] == "dpkg-deb":
            Path(argv[-1], "bin").mkdir(parents=True)
            Path(argv[-1], "bin", "tool").write_text("a tool")
        return Completed(tuple(argv), status, out, "", 0.0)


def test_a_package_that_is_not_installed_is_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = FakeDebian()
    monkeypatch.setattr("orchestrator.guest.packages.run", debian)
    cache = Cache(tmp_path)
    here, other = (find_packages(["here", "other"], cache)[name] for name in ("here", "other"))
    assert root_of(here, cache) == Path("/")
    assert other == Package("other", "2:3.1-4", installed=False)
    for _ in range(2):
        assert (root_of(other, cache) / "bin" / "tool").read_text() == "a tool"
    assert [argv for argv in debian.ran if argv[0] == "apt-get"] == [["apt-get", "download", "other=2:3.1-4"]]
    with pytest.raises(InfrastructureError, match=r"apt does not know the package nowhere.*apt-get update"):
        find_packages(["here", "nowhere"], cache)


def test_a_package_may_have_another_name_on_another_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.guest.packages.run", FakeDebian())
    found = find_packages(["nowhere | other", "here | nowhere"], Cache(tmp_path))
    assert {name: package.name for name, package in found.items()} == {
        "nowhere | other": "other",
        "here | nowhere": "here",
    }
    with pytest.raises(InfrastructureError, match="apt does not know the package nowhere or no_other_name,"):
        find_packages(["nowhere | no_other_name"], Cache(tmp_path))


def test_debian_is_asked_once_for_all_packages_until_it_knows_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian = FakeDebian()
    monkeypatch.setattr("orchestrator.guest.packages.run", debian)
    status = tmp_path / "status"
    status.write_text("here 1.0")
    monkeypatch.setattr("orchestrator.guest.packages._STAMPS", (str(status), str(tmp_path / "gone")))
    cache = Cache(tmp_path / "cache")
    for _ in range(3):
        assert find_packages(["here", "other"], cache)["here"] == Package("here", "1.0", installed=True)
    assert [argv[0] for argv in debian.ran] == ["dpkg-query", "apt-cache"]
    status.write_text("here 1.1 now")
    find_packages(["here", "other"], cache)
    assert len(debian.ran) == 4


def test_a_host_without_apt_is_told_what_the_image_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InfrastructureError, match=r"dpkg-query is missing.*toybox, toyc, which need dpkg and apt"
    ):
        find_packages(["toybox", "toyc"], Cache(tmp_path))


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Pretend that this host has every package in `version`."""
    monkeypatch.setattr(
        "orchestrator.guest.image.find_packages",
        lambda names, cache: {name: Package(name, version, installed=True) for name in names},
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with one workload and one tool; its packages lie in a directory of the test."""
    guest = tmp_path / "project" / "vm_images" / "guest"
    (guest / "tools").mkdir(parents=True)
    (guest / "recipe.toml").write_text(RECIPE)
    (guest / "init").write_text("#!/bin/sh\n")
    (guest / "tools" / "helper.c").write_text("int main(void) { return 0; }\n")
    workloads = tmp_path / "project" / "guest_workloads"
    (workloads / "common").mkdir(parents=True)
    (workloads / "common" / "shared.c").write_text('#include "shared.h"\nint shared(void) { return 0; }\n')
    (workloads / "common" / "shared.h").write_text("int shared(void);\n")
    (workloads / "toy").mkdir()
    (workloads / "toy" / "toy.c").write_text('#include "shared.h"\nint main(void) { return shared(); }\n')
    packages = tmp_path / "packages"
    (packages / "bin").mkdir(parents=True)
    subprocess.run(
        ["gcc", "-static", "-x", "c", "-", "-o", str(packages / "bin" / "busybox")],
        input=b'#include <stdio.h>\nint main(void) { return puts("bin/ls\\nbin/sh") < 0; }\n',
        check=True,
    )
    install(monkeypatch, "1.0")
    monkeypatch.setattr("orchestrator.guest.image.root_of", lambda package, cache: packages)
    return Project(tmp_path / "project")


def test_an_image_is_built_once_and_holds_what_the_recipe_says(project: Project, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    seen: list[Event] = []
    assert not image_artefact(project, cache, Events()).is_made
    image = image_artefact(project, cache, Events(seen.append)).obtain()
    assert image_artefact(project, cache, Events()).is_made
    assert image_artefact(project, cache, Events(seen.append)).obtain() == image
    assert [event.kind for event in seen] == ["start", "end"]

    assert image.initramfs.stat().st_mode & 0o777 == 0o600, "it has the private host key"
    found = unpack(image.initramfs.read_bytes())
    modes = {name: stat.filemode(mode) for name, (mode, _, _) in found.items()}
    assert modes["init"] == "-rwxr-xr-x" and modes["tmp"] == "drwxrwxrwt"
    assert found["bin/ls"][1] == b"/bin/busybox"
    assert found["dev/console"][2] == (5, 1)
    assert modes["usr/lib/workloads/toy"] == modes["usr/bin/helper"] == "-rwxr-xr-x"
    keys = keys_artefact(cache).existing()
    assert keys is not None
    assert found["root/.ssh/authorized_keys"][1].decode().strip() == keys.client_public
    assert modes["etc/dropbear/host_key"] == modes["root/.ssh/authorized_keys"] == "-rw-------"
    assert image.host_key_public.read_text().strip() == keys.host_public
    assert image.client_key.stat().st_mode & 0o077 == 0
    manifest = json.loads(image.manifest.read_text())
    assert manifest["packages"] == {"toybox": "1.0", "toyc": "1.0"}
    assert "sha256" not in manifest["files"]["/etc/dropbear/host_key"]


def test_the_same_inputs_make_the_same_bytes(project: Project, tmp_path: Path) -> None:
    caches = [Cache(tmp_path / name) for name in ("one", "two")]
    # The keys are an input.
    keys_artefact(caches[0]).obtain()
    shutil.copytree(tmp_path / "one" / "ssh-keys", tmp_path / "two" / "ssh-keys")
    first, second = (image_artefact(project, cache, Events()).obtain() for cache in caches)
    assert first.digest == second.digest
    assert first.initramfs.read_bytes() == second.initramfs.read_bytes()


@pytest.mark.parametrize(
    "changed",
    ["vm_images/guest/init", "vm_images/guest/tools/helper.c", "guest_workloads/toy/toy.c",
     "guest_workloads/common/shared.h", "guest_workloads/common/shared.c"],
)  # fmt: skip
def test_every_input_is_in_the_key(project: Project, tmp_path: Path, changed: str) -> None:
    cache = Cache(tmp_path / "cache")
    image_artefact(project, cache, Events()).obtain()
    path = project.root / changed
    path.write_text(path.read_text() + "\n")
    assert not image_artefact(project, cache, Events()).is_made


def test_a_layer_is_in_an_image_of_its_own(project: Project, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    plain = image_artefact(project, cache, Events()).obtain()
    layers = project.vm_images / "guest" / "layers"
    layers.mkdir()
    layer = layers / "extra.toml"
    layer.write_text('[packages]\nextra = ["/bin/busybox"]\n[symlinks]\n"/bin/extra" = "busybox"\n')
    assert (
        image_artefact(project, cache, Events()).is_made
        and not image_artefact(project, cache, Events(), ["extra"]).is_made
    )
    image = image_artefact(project, cache, Events(), ["extra"]).obtain()
    assert image.digest != plain.digest and image_artefact(project, cache, Events(), ["extra"]).is_made
    assert unpack(image.initramfs.read_bytes())["bin/extra"][1] == b"busybox"
    assert "bin/extra" not in unpack(plain.initramfs.read_bytes())
    layer.write_text(layer.read_text() + "\n")
    assert (
        image_artefact(project, cache, Events()).is_made
        and not image_artefact(project, cache, Events(), ["extra"]).is_made
    )


def test_a_layer_brings_programs_of_several_sources(project: Project, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    guest = project.vm_images / "guest"
    (guest / "layers").mkdir()
    (guest / "layers" / "extra.toml").write_text('[programs]\n"/usr/lib/tests/extra" = "extra"\n')
    (guest / "extra").mkdir()
    (guest / "extra" / "main.c").write_text("int other(void);\nint main(void) { return other(); }\n")
    (guest / "extra" / "other.c").write_text("int other(void);\nint other(void) { return 0; }\n")
    image = image_artefact(project, cache, Events(), ["extra"]).obtain()
    mode, content, *_ = unpack(image.initramfs.read_bytes())["usr/lib/tests/extra"]
    assert mode & 0o777 == 0o755 and content[:4] == b"\x7fELF"
    (guest / "extra" / "other.h").write_text("int other(void);\n")
    assert not image_artefact(project, cache, Events(), ["extra"]).is_made


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("packages = 1", r"extra\.toml:1: packages: must be a table, not 1"),
        ("[nodes]", r"extra\.toml:1: nodes: unknown key; known are packages, libraries"),
        ("[libraries]", r"extra\.toml:1: libraries.packages: this key is missing"),
        ('[programs]\n"/bin/x" = "none"', r"extra\.toml:2: programs./bin/x: there is no C source in .*none"),
        ("packages", r"extra\.toml: cannot read this image layer"),
    ],
)
def test_a_fault_of_a_layer_is_reported_with_file_and_key(
    project: Project, tmp_path: Path, text: str, fault: str
) -> None:
    layers = project.vm_images / "guest" / "layers"
    layers.mkdir()
    (layers / "extra.toml").write_text(text)
    with pytest.raises(UserError, match=fault):
        image_artefact(project, Cache(tmp_path / "cache"), Events(), ["extra"]).obtain()
    with pytest.raises(UserError, match="no layer 'other'; the layers are extra"):
        image_artefact(project, Cache(tmp_path / "cache"), Events(), ["other"]).obtain()


def test_a_new_version_of_a_package_makes_a_new_image(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    image_artefact(project, cache, Events()).obtain()
    install(monkeypatch, "1.1")
    assert not image_artefact(project, cache, Events()).is_made


def test_a_program_that_does_not_compile_is_the_users_fault(project: Project, tmp_path: Path) -> None:
    (project.guest_workloads / "toy" / "toy.c").write_text("int main(void) { int unused; }\n")
    with pytest.raises(UserError, match=r"guest program toy does not compile: .*unused"):
        image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()
    assert not image_artefact(project, Cache(tmp_path / "cache"), Events()).is_made


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("/usr/bin/ld: final link failed: No space left on device", "the disk is full"),
        ("toy.c: fatal error: error writing to /tmp/a.s: No space left on device", "the disk is full"),
        ("cc1: error: Killed signal terminated program cc1", "ran out of memory"),
        ("cc1: out of memory allocating 65536 bytes", "ran out of memory"),
        (
            "ccache: error: Failed to create directory /c: Permission denied",
            "because of this host: ccache: error",
        ),
    ],
)
def test_a_host_that_cannot_compile_is_not_the_users_fault(
    said: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gcc"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InfrastructureError, match=expected):
        compile_workload(ROOT / "guest_workloads", "chunk", tmp_path / "chunk")


def test_a_package_may_have_moved_its_files_below_usr(project: Project, tmp_path: Path) -> None:
    """Debian 13's busybox-static has /usr/bin/busybox, where Debian 12's has /bin/busybox."""
    packages = tmp_path / "packages"
    (packages / "usr/bin").mkdir(parents=True, exist_ok=True)
    (packages / "bin/busybox").rename(packages / "usr/bin/busybox")
    built = image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()
    assert "bin/busybox" in unpack(built.initramfs.read_bytes())


def test_a_package_may_have_data_that_a_program_reads(project: Project, tmp_path: Path) -> None:
    data = tmp_path / "packages" / "usr/share/toy"
    data.mkdir(parents=True)
    (data / "words").write_text("the\n")
    recipe = project.vm_images / "guest" / "recipe.toml"
    recipe.write_text(RECIPE.replace('"/bin/busybox"]', '"/bin/busybox", "/usr/share/toy/words"]'))
    built = image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()
    unpacked = unpack(built.initramfs.read_bytes())
    assert unpacked["usr/share/toy/words"][1] == b"the\n"
    assert [unpacked[path][0] & 0o777 for path in ("usr/share/toy/words", "bin/busybox")] == [0o644, 0o755]


def test_a_file_that_its_package_lacks_is_reported(project: Project, tmp_path: Path) -> None:
    recipe = project.vm_images / "guest" / "recipe.toml"
    recipe.write_text(RECIPE.replace('"/bin/busybox"]', '"/bin/busybox", "/bin/gone"]'))
    with pytest.raises(InfrastructureError, match=r"toybox 1\.0 has no /bin/gone"):
        image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()


def test_a_file_that_the_recipe_lacks_is_reported(project: Project, tmp_path: Path) -> None:
    (project.vm_images / "guest" / "init").unlink()
    with pytest.raises(UserError, match="init: the image recipe names this file"):
        image_artefact(project, Cache(tmp_path / "cache"), Events()).obtain()
