# SPDX-License-Identifier: GPL-2.0-only
"""A series of one's own: patches, mail and commits, without a series.toml."""

from __future__ import annotations

import subprocess
import textwrap
from email.mime.text import MIMEText
from pathlib import Path

import pytest
from fake_tree import PATCH, git, write_series, write_tree
from guest_data import ROOT

from orchestrator.cache import Cache
from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.events import Events
from orchestrator.kernel.posting import series_directory, stage_names
from orchestrator.kernel.posting import write_series as write_own
from orchestrator.kernel.series import Series, load_series
from orchestrator.kernel.source import import_source, with_commit
from orchestrator.kernel.tree import PatchedTree, apply_stages

FIRST = PATCH.format(
    subject="1/2] mm: größer — one", body="Weil.", old="\treturn address;", new="\treturn address + 1;"
).replace("[PATCH] 1/2]", "[PATCH 1/2]")
SECOND = PATCH.format(
    subject="2/2] mm: two", body="Because.", old="\treturn address + 1;", new="\treturn address + 2;"
).replace("[PATCH] 2/2]", "[PATCH 2/2]")
COVER = textwrap.dedent("""\
    From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
    From: A Developer <developer@localhost>
    Date: Mon, 1 Jan 2024 00:00:00 +0000
    Subject: [PATCH 0/2] mm: count further

    Text.

    base-commit: 0123456789012345678901234567890123456789
    --
    2.39
    """)
NAMES = ["mm-gr-er-one", "mm-two"]


def encoded(text: str, charset: str, transfer: str) -> str:
    """A patch as another mail program delivers it."""
    head, _, body = text.partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    mail = MIMEText(body, "plain", charset)
    if transfer == "quoted-printable":
        import quopri

        mail.replace_header("Content-Transfer-Encoding", transfer)
        mail.set_payload(quopri.encodestring(body.encode(charset)).decode())
    from email.header import Header

    mail["From"], mail["Date"] = fields["From"], fields["Date"]
    mail["Subject"] = Header(fields["Subject"], "utf-8").encode()
    return f"From git@z Thu Jan  1 00:00:00 1970\n{mail.as_string()}\n"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def applied(series: Series, tmp_path: Path, cache: Cache) -> PatchedTree:
    linux = tmp_path / "linux"
    source = import_source(
        str(linux if linux.exists() else write_tree(linux)), "linux-source-6.12", cache, Events()
    )
    return apply_stages(source, series.stages, cache, Events())


def answer(tree: PatchedTree) -> str:
    argv = ["git", f"--git-dir={tree.repository}", "show", f"{tree.commit}:mm/memory.c"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_directory_of_patches(tmp_path: Path, cache: Cache) -> None:
    place = tmp_path / "outgoing"
    place.mkdir()
    for name, text in (("0000-cover-letter", COVER), ("0001-one", FIRST), ("0002-two", SECOND)):
        (place / f"{name}.patch").write_text(text)
    series = load_series(series_directory(place, cache))
    assert (series.title, series.groups) == ("mm: count further", ())
    assert [stage.name for stage in series.stages] == NAMES
    assert series.stages[0].title == "mm: größer — one"
    assert series.bases.commit == "0123456789012345678901234567890123456789"
    assert len(series.select("full")) == 2 and len(series.select("stage-1")) == 1
    assert "return address + 2;" in answer(applied(series, tmp_path, cache))


@pytest.mark.parametrize("transfer", ["8bit", "base64", "quoted-printable", "latin1", "crlf"])
def test_an_mbox_in_any_encoding_gives_the_same_kernel(tmp_path: Path, cache: Cache, transfer: str) -> None:
    texts = [COVER, SECOND, FIRST]  # out of order, as a mailing list delivers them
    if transfer in ("base64", "quoted-printable"):
        texts = [encoded(text, "utf-8", transfer) for text in texts]
    elif transfer == "latin1":
        texts = [encoded(text, "latin-1", "quoted-printable") for text in texts]
    content = "\n".join(texts).encode()
    path = tmp_path / "series.mbx"
    path.write_bytes(content.replace(b"\n", b"\r\n") if transfer == "crlf" else content)
    series = load_series(series_directory(path, cache))
    assert [stage.name for stage in series.stages] == NAMES
    assert series.stages[0].title == "mm: größer — one"
    assert "return address + 2;" in answer(applied(series, tmp_path, cache))
    assert all(stage.patch.read_text(encoding="utf-8") for stage in series.stages)


def test_a_range_of_commits_and_its_merges(tmp_path: Path, cache: Cache) -> None:
    linux = write_tree(tmp_path / "linux")
    git(linux, "init", "-q", "-b", "main")
    git(linux, "add", "-A", "-f")
    git(linux, "commit", "-qm", "base")
    start = git(linux, "rev-parse", "HEAD")
    git(linux, "switch", "-qc", "topic")
    memory = linux / "mm" / "memory.c"
    memory.write_text(memory.read_text().replace("return address;", "return address + 1;"))
    git(linux, "commit", "-qam", "mm: one\n\n--- a/mm/x.c\ndiff --git a/x b/x\nis not a diff")
    git(linux, "switch", "-qc", "side", "main")
    (linux / "mm" / "new.c").write_text("int new;\n")
    git(linux, "add", "-A", "-f")
    git(linux, "commit", "-qm", "mm: new")
    git(linux, "switch", "-q", "topic")
    git(linux, "merge", "-q", "--no-ff", "-m", "Merge side", "side")
    git(linux, "commit", "-q", "--allow-empty", "-m", "mm: nothing")
    (linux / "mm" / "data").write_bytes(bytes(range(256)))
    (linux / "Kbuild").rename(linux / "Kbuild.new")
    git(linux, "add", "-A", "-f")
    git(linux, "commit", "-qm", "mm: a file of bytes, and a rename")
    series = load_series(series_directory(Path(f"{linux}#main..topic"), cache))
    assert [stage.title for stage in series.stages] == [
        "mm: one",
        "Merge side",
        "mm: a file of bytes, and a rename",
    ]
    assert series.bases.source == f"{linux}#{start}"
    source = import_source(series.bases.source, "linux-source-6.12", cache, Events())
    tree = apply_stages(source, series.stages, cache, Events())
    assert tree.tree == git(linux, "rev-parse", "topic^{tree}")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nowhere", "there is no .*nowhere; name a directory with a series.toml or with patches"),
        ("empty", "neither a series.toml nor a file"),
        ("cover.mbox", "has no patch that git am could apply"),
        ("gap.mbox", "patch 2 of 3 is missing"),
        ("twice.mbox", "patch 1 of 2 is there twice"),
        ("plain.diff", "has no subject"),
        ("linux#main..main", "adds no commit"),
        ("linux#main..nobranch", "has no commit nobranch"),
        ("nolinux#a..b", "there is no git tree"),
    ],
)
def test_what_is_no_series_is_one_sentence(tmp_path: Path, cache: Cache, given: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cover.mbox").write_text(COVER)
    (tmp_path / "gap.mbox").write_text(FIRST.replace("1/2", "1/3") + SECOND.replace("2/2", "3/3"))
    (tmp_path / "twice.mbox").write_text(FIRST + SECOND + FIRST)
    (tmp_path / "plain.diff").write_text(FIRST[FIRST.index("diff --git") :])
    if given.startswith("linux"):
        linux = write_tree(tmp_path / "linux")
        git(linux, "init", "-q", "-b", "main")
        git(linux, "commit", "-q", "--allow-empty", "-m", "base")
    with pytest.raises(UserError, match=sentence) as caught:
        series_directory(tmp_path / given, cache)
    assert str(caught.value).count("\n") == 0
    assert not list(cache.root.glob("series/*"))


def test_one_patch_of_a_series_may_stand_alone(tmp_path: Path, cache: Cache) -> None:
    for name, text in (("first", FIRST), ("second", SECOND)):
        path = tmp_path / f"{name}.patch"
        path.write_text(text)
        assert len(load_series(series_directory(path, cache)).stages) == 1


def test_an_mbox_is_not_one_stage(tmp_path: Path) -> None:
    place = write_series(tmp_path / "patches")
    (place / "6.12" / "0001.patch").write_text(FIRST + SECOND)
    with pytest.raises(UserError, match=r"series\.toml:\d+: .* has 2 patches, and a stage is one commit"):
        load_series(place)


def test_a_changelog_that_quotes_mail_is_one_patch(tmp_path: Path) -> None:
    place = write_series(tmp_path / "patches")
    path = place / "6.12" / "0001.patch"
    path.write_text(path.read_text().replace("Because.", "From what is known, 20:15 is late in 2024"))
    assert len(load_series(place).stages) == 3


def test_series_init_writes_one_to_refine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "0001-one.patch").write_text(FIRST)
    (place / "0002-two.patch").write_text(encoded(SECOND, "utf-8", "base64"))
    assert status_of(["series", "init", str(place)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{place}/series.toml: 2 stages",
        "  1  mm-gr-er-one",
        "  2  mm-two",
    ]
    toml = place / "series.toml"
    text = toml.read_text()
    toml.write_text(
        text.replace('# groups = ["core", "tuning"]', 'groups = ["core"]').replace("# group =", "group =")
    )
    assert [stage.group for stage in load_series(place).stages] == ["core", "core"]
    assert status_of(["series", "init", str(place)]) == 2
    assert "exists; edit it" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not empty"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        write_own(place / "0001-one.patch", tmp_path / "full")


def test_base_commit_is_used_where_the_source_has_it(tmp_path: Path) -> None:
    linux = write_tree(tmp_path / "linux")
    git(linux, "init", "-q", "-b", "main")
    git(linux, "add", "-A", "-f")
    git(linux, "commit", "-qm", "base")
    commit = git(linux, "rev-parse", "HEAD")
    assert with_commit(str(linux), commit) == f"{linux}#{commit}"
    assert with_commit(str(linux), "0" * 40) == str(linux)
    assert with_commit(f"{linux}#main", commit) == f"{linux}#main"
    assert with_commit(str(tmp_path), commit) == str(tmp_path)


def test_a_patch_in_any_charset_is_shown(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    place = write_series(tmp_path / "patches")
    path = place / "6.12" / "0001.patch"
    content = path.read_bytes().replace(b"Because.", "Jürgen".encode("latin-1"))
    path.write_bytes(content)
    assert status_of(["series", "show", "1", "--series", str(place)]) == 0
    assert capfdbinary.readouterr().out == content


def test_the_example_of_the_documentation(cache: Cache) -> None:
    series = load_series(series_directory(ROOT / "experiments" / "zero-check", cache))
    assert [stage.name for stage in series.stages] == [
        "mm-memory-check-that-a-new-anonymous-folio-is-zero",
        "mm-mincore-do-not-shadow-an-argument",
    ]


def test_names_of_stages_are_unique_and_plain() -> None:
    assert stage_names(["", "mm: a", "mm/a", "Ä", "stage-1", "x" * 80]) == [
        *("patch", "mm-a", "mm-a-2", "patch-2", "the-stage-1"),
        "x" * 52,
    ]


def test_what_needs_a_model_or_tests_of_its_own_says_so(tmp_path: Path, cache: Cache) -> None:
    from orchestrator.execution.check.request import TraceChoice
    from orchestrator.execution.correctness.suite import choose_for
    from orchestrator.machine.topology import Topology

    path = tmp_path / "one.patch"
    path.write_text(SECOND.replace(" 2/2", ""))
    series = load_series(series_directory(path, cache))
    traces = TraceChoice((), 1, None, 10, "mixed")
    with pytest.raises(UserError, match=r"the reference model .* knows no stage of mm-two"):
        traces.traces("full", series, Topology.parse("2x512M"))
    assert traces.traces("baseline", series, Topology.parse("2x512M"))
    with pytest.raises(UserError, match="--suite reservations tests the project's own series"):
        choose_for(series, ("reservations",), False)
    assert {suite.name for suite in choose_for(series, (), False)} == {
        "selftests",
        "stress",
        "stress-classic-swap",
    }
