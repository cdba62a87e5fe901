# SPDX-License-Identifier: GPL-2.0-only
"""A series as mail: what is written, who signs it off, and that nothing of a person's is lost."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from email import message_from_string, policy
from pathlib import Path

import pytest
from fake_tree import git, write_patch
from synthetic_run import Synthetic
from workbench import Workbench

from orchestrator.analysis.changelog import changelog_text
from orchestrator.analysis.comparison import compare
from orchestrator.cli.application import status_of
from orchestrator.errors import UserError
from orchestrator.kernel.series import AlternativePatch, load_series
from orchestrator.kernel.source import SourceTree, origin_commit
from orchestrator.kernel.tree import PatchedTree
from orchestrator.mail.mailbox import Person, authors_without_sign_off
from orchestrator.mail.outbox import Outbox

ME = ["--from", "A Sender <sender@example.org>"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    made = Workbench(tmp_path)
    (tmp_path / "kernel_patches").symlink_to(made.patches)
    monkeypatch.setenv("ORCHESTRATE_ROOT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(made.cache.root))
    monkeypatch.setenv("ORCHESTRATE_RESULTS", str(tmp_path / "results"))
    return made


def export(bench: Workbench, *arguments: str, status: int = 0) -> list[Path]:
    words = ["--quiet", "series", "export", str(bench.root / "out"), "--source", str(bench.root / "linux")]
    assert status_of([*words, *arguments]) == status
    return sorted((bench.root / "out").glob("*.patch"))


def subjects(files: list[Path]) -> list[str]:
    return [re.sub(r"\n\s+", " ", message_from_string(path.read_text())["Subject"]) for path in files]


def test_a_series_is_numbered_and_threaded(bench: Workbench) -> None:
    files = export(bench, *ME)
    assert subjects(files) == [
        "[PATCH 0/3] mm: a fake series",
        "[PATCH 1/3] mm: change the answer",
        "[PATCH 2/3] mm: change the answer",
        "[PATCH 3/3] mm: change the answer",
    ]
    cover, *patches = (message_from_string(path.read_text()) for path in files)
    assert {patch["In-Reply-To"] for patch in patches} == {cover["Message-Id"]}
    assert {patch["References"] for patch in patches} == {cover["Message-Id"]}
    assert len({patch["Message-Id"] for patch in patches} | {cover["Message-Id"]}) == 4


def test_a_later_version_says_which(bench: Workbench) -> None:
    files = export(bench, *ME, "--version", "3")
    assert subjects(files)[0].startswith("[PATCH v3 0/3]")
    assert [path.name[:8] for path in files] == ["v3-0000-", "v3-0001-", "v3-0002-", "v3-0003-"]


def test_only_the_sender_signs_off(bench: Workbench) -> None:
    cover, *patches = export(bench, *ME)
    for patch in patches:
        assert re.findall(r"^Signed-off-by: (.*)$", patch.read_text(), re.MULTILINE) == [ME[1]]
    assert "Signed-off-by" not in cover.read_text()


def test_the_sender_takes_the_place_of_nobody_and_of_nobody_else(
    bench: Workbench, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = bench.patches / "6.12" / "0002.patch"
    text = theirs.read_text().replace("developer@localhost", "developer@example.org")
    theirs.write_text(text)
    files = export(bench, *ME)
    first, second = (message_from_string(path.read_text(), policy=policy.default) for path in files[1:3])
    assert first["From"] == second["From"] == ME[1]
    assert not first.get_content().startswith("From: ")
    assert second.get_content().startswith("From: A Developer <developer@example.org>\n")
    assert "stage 2 is by developer@example.org, who has not signed it off" in capsys.readouterr().err


def test_git_am_gives_the_tree_of_the_stored_patches(bench: Workbench) -> None:
    files = export(bench, *ME)
    clone = bench.root / "clone"
    subprocess.run(["git", "clone", "-q", str(bench.source.repository), "-b", "base", str(clone)], check=True)
    git(clone, "am", "-q", *map(str, files[1:]))
    assert git(clone, "rev-parse", "HEAD^{tree}") == bench.tree("full").tree


def test_the_cover_letter_has_the_diffstat_of_the_whole_series(bench: Workbench) -> None:
    text = export(bench, *ME)[0].read_text()
    assert " mm/memory.c | 2 +-\n 1 file changed, 1 insertion(+), 1 deletion(-)" in text
    assert "***" not in text


def test_a_group_can_be_exported_alone_with_its_own_text(bench: Workbench) -> None:
    texts = bench.patches / "cover-letter"
    texts.mkdir()
    (texts / "core-only.txt").write_text("What the core does.\n")
    (texts / "docs.txt").write_text("What the docs say.\n")
    files = export(bench, *ME, "--patchset", "core-only")
    assert subjects(files)[0] == "[PATCH 0/2] mm: a fake series"
    text = files[0].read_text()
    assert "What the core does." in text and "What the docs say." not in text
    assert "What the docs say." in export(bench, *ME)[0].read_text()


def test_the_figures_are_those_of_changelog(bench: Workbench) -> None:
    run = Synthetic(histograms=False).write(bench.root / "results")
    series = bench.patches / "series.toml"
    # The run measured stages that this series has, with other digests.
    measured = {stage.number for variant in run.manifest.variants for stage in variant.stages}
    assert measured
    for number in range(4, max(measured) + 1):
        write_patch(
            bench.patches / "6.12" / f"{number:04}.patch",
            f"\treturn address + {number - 1};",
            f"\treturn address + {number};",
        )
        entry = (
            f'[[stage]]\nnumber = {number}\nname = "s{number}"\ngroup = "docs"\npatch = "{number:04}.patch"\n'
        )
        entry += 'title = "mm: more"\nknobs = []\ncounters = []\n\n[[knob]]'
        series.write_text(series.read_text().replace("[[knob]]", entry))
    text = export(bench, *ME, "--run", run.path.name)[0].read_text()
    assert changelog_text(run, compare(run)).strip() in text
    plain = " ".join(text.split())
    assert f"with patches 1-{max(measured)}, measured with an earlier version of patches 1, 2" in plain


def test_a_run_of_stages_that_are_not_exported_is_refused(
    bench: Workbench, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Synthetic(histograms=False).write(bench.root / "results")
    assert export(bench, *ME, "--patchset", "core-only:1", "--run", run.path.name, status=2) == []
    assert "which this export does not have" in capsys.readouterr().err
    assert not (bench.root / "out").exists()


def test_notes_are_taken_as_they_are_whatever_their_letters(bench: Workbench) -> None:
    notes = bench.root / "v2.txt"
    notes.write_text("Changes since v1:\n - renamed as Łukasz asked\n")
    text = export(bench, *ME, "--version", "2", "--notes", str(notes))[0].read_text()
    assert "Changes since v1:\n - renamed as Łukasz asked\n" in text
    mail = message_from_string(text)
    assert mail["Content-Transfer-Encoding"] == "8bit" and mail.get_content_charset() == "utf-8"


def test_a_base_is_named_by_a_commit_that_others_know(bench: Workbench) -> None:
    assert "base-commit" not in export(bench, *ME)[0].read_text()
    text = export(bench, *ME, "--base", "a" * 40)[0].read_text()
    assert text.endswith(f"\n\nbase-commit: {'a' * 40}\n")


def test_a_git_tree_knows_its_commit_and_a_changed_one_has_none(bench: Workbench) -> None:
    tree = bench.root / "linux"
    git(tree, "init", "-q")
    git(tree, "add", "-Af")
    git(tree, "commit", "-qm", "Linux")
    head = git(tree, "rev-parse", "HEAD")
    assert origin_commit(str(tree), git(tree, "rev-parse", "HEAD^{tree}")) == head
    assert origin_commit(str(tree), "b" * 40) is None
    assert origin_commit(None, "b" * 40) is None


@pytest.mark.parametrize(
    "text", ["", "me", "me@example.org", "Me <me>", "Me <a b@example.org>", "<me@example.org>"]
)
def test_a_sender_needs_name_and_address(text: str) -> None:
    with pytest.raises(UserError, match="Name <mail@example"):
        Person.parse(text)


def test_who_is_not_known_does_not_sign(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.chdir(bench.root)
    assert export(bench, status=2) == []
    assert "--from 'Name <mail@example.org>'" in capsys.readouterr().err
    assert not (bench.root / "out").exists()


def test_the_person_of_git_config_signs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bench.root / "gitconfig"
    config.write_text("[user]\nname = Jürgen Configured\nemail = configured@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.chdir(bench.root)
    for patch in export(bench)[1:]:
        text = patch.read_text()
        assert "\nSigned-off-by: Jürgen Configured <configured@example.org>\n---\n" in text
        assert message_from_string(text).get_content_charset() == "utf-8"


def test_an_earlier_export_is_replaced_as_a_whole(bench: Workbench) -> None:
    export(bench, *ME)
    files = export(bench, *ME, "--version", "2", "--patchset", "core-only")
    assert [path.name[:8] for path in files] == ["v2-0000-", "v2-0001-", "v2-0002-"]
    assert sorted(path.name for path in bench.root.iterdir() if path.name.startswith(".")) == []


def test_what_a_person_edited_or_put_there_is_not_lost(
    bench: Workbench, capsys: pytest.CaptureFixture[str]
) -> None:
    cover = export(bench, *ME)[0]
    edited = cover.read_text() + "my own words\n"
    cover.write_text(edited)
    export(bench, *ME, status=2)
    assert cover.read_text() == edited
    assert "was edited after it was exported" in capsys.readouterr().err
    mine = bench.root / "out" / "list-of-recipients"
    mine.write_text("linux-mm@kvack.org\n")
    export(bench, *ME, "--force")
    assert mine.read_text() == "linux-mm@kvack.org\n"
    assert "my own words" not in cover.read_text()
    export(bench, *ME, status=2)
    assert "list-of-recipients is not from an export" in capsys.readouterr().err


def test_a_directory_of_something_else_is_refused_before_anything_is_done(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bench.root / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    export(bench, *ME, status=2)
    assert "the working directory" in capsys.readouterr().err
    monkeypatch.chdir(bench.root)
    out.rmdir()
    out.write_text("")
    export(bench, *ME, status=2)
    assert "is not a directory" in capsys.readouterr().err


def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")

    def write(place: Path) -> list[Path]:
        (place / "0001.patch").write_text("first")
        return [place / "0001.patch"]

    outbox.fill(write)

    def fail(place: Path) -> list[Path]:
        (place / "0001.patch").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.fill(fail)
    assert (tmp_path / "out" / "0001.patch").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    outbox.check(force=False)


def test_json_names_the_files_in_their_order(bench: Workbench, capsys: pytest.CaptureFixture[str]) -> None:
    files = export(bench, *ME, "--json")
    assert json.loads(capsys.readouterr().out)["files"] == list(map(str, files))


def test_every_group_of_the_projects_series_but_docs_has_a_text() -> None:
    patches = Path(__file__).resolve().parents[2] / "kernel_patches"
    texts = {path.stem: path.read_text() for path in (patches / "cover-letter").glob("*.txt")}
    assert set(texts) == set(load_series(patches).groups) - {"docs"}
    for text in texts.values():
        assert text.isascii() and max(map(len, text.splitlines())) <= 75


def test_the_author_is_that_of_the_patch_that_was_applied(bench: Workbench, tmp_path: Path) -> None:
    (stage, *_) = load_series(bench.patches).stages
    theirs = tmp_path / "variant.patch"
    theirs.write_text(stage.patch.read_text().replace("developer@localhost", "developer@example.org"))
    stage = replace(stage, variants=(AlternativePatch("6.12.118", theirs),))
    source = SourceTree(tmp_path, "", "", "6.12.118", "a source")
    sender = Person.parse(ME[1])
    own = PatchedTree(tmp_path, "", "", source, (stage,))
    assert authors_without_sign_off(own, sender) == []
    assert authors_without_sign_off(replace(own, variants={1: "6.12.118"}), sender) == [
        "stage 1 is by developer@example.org, who has not signed it off"
    ]
