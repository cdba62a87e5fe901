# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UserError
from orchestrator.kernel.config import (
    check_survived,
    configuration,
    flavours,
    line_of,
    parse_line,
    with_settings,
)

ROOT = Path(__file__).resolve().parents[2]


def fragments(directory: Path, **texts: str) -> Path:
    (directory / "kernel").mkdir()
    for name, text in texts.items():
        (directory / "kernel" / f"{name.replace('_', '-')}.config").write_text(text)
    return directory


def test_a_flavour_is_the_base_and_its_own_fragment(tmp_path: Path) -> None:
    fragments(
        tmp_path, base="CONFIG_NUMA=y\n", measure="# CONFIG_KASAN is not set\n", dwarf="CONFIG_DEBUG_INFO=y\n"
    )
    assert flavours(tmp_path) == ("measure",)
    plain = configuration(tmp_path, "measure")
    assert plain.requested == {"CONFIG_NUMA": "y", "CONFIG_KASAN": "n"}
    dwarf = configuration(tmp_path, "measure", dwarf=True)
    assert dwarf.requested["CONFIG_DEBUG_INFO"] == "y" and dwarf.digest != plain.digest


def test_comments_do_not_change_the_digest(tmp_path: Path) -> None:
    fragments(tmp_path, base="CONFIG_NUMA=y\n", measure="")
    before = configuration(tmp_path, "measure").digest
    (tmp_path / "kernel" / "base.config").write_text("# why\nCONFIG_NUMA=y\n")
    assert configuration(tmp_path, "measure").digest == before


def test_an_unknown_flavour_lists_those_there_are(tmp_path: Path) -> None:
    fragments(tmp_path, base="", measure="", debug_vm="")
    with pytest.raises(UserError, match="debug-vm, measure"):
        configuration(tmp_path, "fast")


def test_a_contradiction_names_both_lines(tmp_path: Path) -> None:
    fragments(tmp_path, base="\nCONFIG_KSM=y\n", measure="# CONFIG_KSM is not set\n")
    with pytest.raises(UserError, match=r"measure\.config:1 .*base\.config:2"):
        configuration(tmp_path, "measure")


def test_a_line_that_is_not_a_request_is_refused(tmp_path: Path) -> None:
    fragments(tmp_path, base="NUMA=y\n", measure="")
    with pytest.raises(UserError, match=r"base\.config:1"):
        configuration(tmp_path, "measure")


def test_every_option_that_vanished_is_named() -> None:
    requested = {"CONFIG_NUMA": "y", "CONFIG_KASAN": "y", "CONFIG_NR_CPUS": "64", "CONFIG_KSM": "n"}
    granted = "CONFIG_NUMA=y\nCONFIG_NR_CPUS=8\n"
    with pytest.raises(UserError) as caught:
        check_survived(requested, granted)
    assert "CONFIG_KASAN (requested y, got nothing)" in str(caught.value)
    assert "CONFIG_NR_CPUS (requested 64, got 8)" in str(caught.value)
    assert "CONFIG_NUMA " not in str(caught.value) and "CONFIG_KSM" not in str(caught.value)


def test_an_option_to_be_off_that_is_on_is_an_error() -> None:
    with pytest.raises(UserError, match="CONFIG_KSM"):
        check_survived({"CONFIG_KSM": "n"}, "CONFIG_KSM=y\n")


@settings(deadline=None)  # a busy host takes its time
@given(
    st.from_regex(r"CONFIG_[A-Z0-9_]{1,20}", fullmatch=True),
    st.from_regex(r'[a-z0-9"x./-]{1,12}', fullmatch=True),
)
def test_a_line_is_read_back_as_it_was_written(option: str, value: str) -> None:
    assert parse_line(line_of(option, value)) == (option, value)


@pytest.mark.parametrize("flavour", ["measure", "debug-vm", "debug-locks"])
@pytest.mark.parametrize("dwarf", [False, True])
def test_the_projects_own_fragments_agree(flavour: str, dwarf: bool) -> None:
    requested = configuration(ROOT / "vm_images", flavour, dwarf).requested
    assert requested["CONFIG_TRANSPARENT_HUGEPAGE"] == "y" and requested["CONFIG_NUMA"] == "y"


def test_extra_requests_win_and_are_checked(tmp_path: Path) -> None:
    fragments(tmp_path, base="CONFIG_KSM=y\n", measure="")
    chosen = configuration(tmp_path, "measure", extra={"CONFIG_KSM": "n", "CONFIG_NR_CPUS": "8"})
    assert chosen.requested == {"CONFIG_KSM": "n", "CONFIG_NR_CPUS": "8"}
    assert "# CONFIG_KSM is not set" in chosen.text
    for option, value in (("KSM", "y"), ("CONFIG_KSM", "y\nCONFIG_KASAN=y"), ("CONFIG_A B", "y")):
        with pytest.raises(UserError, match="not an option"):
            configuration(tmp_path, "measure", extra={option: value})


def test_a_flavour_that_is_nearly_right_gets_a_suggestion(tmp_path: Path) -> None:
    fragments(tmp_path, base="", measure="")
    with pytest.raises(UserError, match="did you mean measure"):
        configuration(tmp_path, "mesure")


def test_other_versions_may_lack_an_option_or_name_it_otherwise(tmp_path: Path) -> None:
    place = tmp_path / "kernel"
    place.mkdir()
    (place / "base.config").write_text(
        "CONFIG_NUMA=y\nCONFIG_NEW=y  # or CONFIG_OLD=y\nCONFIG_ZRAM=y  # optional\nCONFIG_LATER=y  # elsewhere\n"
    )
    (place / "measure.config").write_text("")
    asked = configuration(tmp_path, "measure")

    def granted(*names: str) -> None:
        check_survived(
            asked.requested, "".join(f"{name}=y\n" for name in names), asked.optional, asked.others
        )

    granted("CONFIG_NUMA", "CONFIG_NEW")
    granted("CONFIG_NUMA", "CONFIG_OLD")
    with pytest.raises(UserError, match="CONFIG_NEW"):
        granted("CONFIG_NUMA")
    with pytest.raises(UserError, match="CONFIG_NUMA"):
        granted("CONFIG_NEW")
    assert asked.missing_from("CONFIG_NUMA=y\n") == ["CONFIG_ZRAM"]
    assert {"CONFIG_OLD=y", "CONFIG_LATER=y"} <= set(asked.text.splitlines())
    # Kernels of the version that the fragments are written for stay cached.
    (place / "base.config").write_text("CONFIG_NUMA=y\nCONFIG_NEW=y\nCONFIG_ZRAM=y\n")
    assert configuration(tmp_path, "measure").digest == asked.digest
    # What a person asks for is not optional.
    assert not configuration(tmp_path, "measure", extra={"CONFIG_ZRAM": "y"}).optional & {"CONFIG_ZRAM"}


def test_a_compiler_is_part_of_a_flavour() -> None:
    flavour = with_settings("measure", ["CONFIG_KSM=n"], "clang")
    assert flavour == "measure+cc=clang+CONFIG_KSM=n"
    chosen = configuration(ROOT / "vm_images", flavour)
    assert (chosen.flavour, chosen.target.program, chosen.requested["CONFIG_KSM"]) == (
        "measure",
        "clang",
        "n",
    )
    assert with_settings("measure", (), "gcc") == with_settings("measure", ()) == "measure"
    with pytest.raises(UserError, match="--cc icc: unknown compiler"):
        with_settings("measure", (), "icc")
