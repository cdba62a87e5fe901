# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.report import write_report
from orchestrator.store.outcome import Outcome
from orchestrator.store.run import Run

HOSTILE = "BUG: <script>alert('x')</script> & more\nCall Trace:\n <b>foo</b>+0x1"
SYNTHETIC = Synthetic(failures={"core-only@256.chunk.2": (Outcome.KERNEL_BUG, HOSTILE)})
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg"><title>Survivors &amp; others</title>'
    '<rect width="9" height="9"/></svg>'
)
_VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects ids, links and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, tag: str, attribute: str) -> list[str]:
        return [value for name, attrs in self.elements if name == tag and (value := attrs.get(attribute))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return SYNTHETIC.write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    plot = run.path / "plots" / "survivors.svg"
    plot.parent.mkdir()
    plot.write_text(SVG)
    png = plot.with_suffix(".png")
    png.write_bytes(b"not used")
    path = run.path / "report.html"
    write_report(run, compare(run), [png, plot], path)
    return path.read_text(encoding="utf-8")


def test_elements_nest_and_anchors_lead_somewhere(text: str) -> None:
    page = Page(text)
    ids = {attrs["id"] for _, attrs in page.elements if attrs.get("id")}
    anchors = [href for href in page.values("a", "href") if href.startswith("#")]
    assert anchors
    assert {anchor[1:] for anchor in anchors} <= ids


def test_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.values("img", "src"))
    assert not {"link", "iframe"} & {tag for tag, _ in page.elements}
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [{}], "one script, inside the page"
    assert "default-src 'none'" in text


def test_the_policy_allows_the_pages_own_script_only(text: str) -> None:
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text


def test_what_a_guest_printed_is_escaped(text: str) -> None:
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in text


def test_plots_are_inside_with_their_titles(text: str) -> None:
    assert Page(text).values("img", "alt") == ["Survivors & others"]


def test_every_cell_is_listed_and_links_to_its_logs(run: Run, text: str) -> None:
    for cell in run.cells["cell"]:
        assert cell in text
    links = [href for href in Page(text).values("a", "href") if not href.startswith("#")]
    assert links
    for link in links:
        assert (run.path / unquote(link)).is_dir()


def test_has_verdicts_findings_and_the_command(text: str) -> None:
    for part in (
        "orchestrate run --patchset core-only --repeat 5",
        "39 of 40",
        "- regressed",
        "+ improved",
        "= equivalent",
        "counters are consistent in 19 of 19 patched cells",
        "guest instructions",
        "failed-cell",
    ):
        assert part in text


def test_links_follow_where_the_page_is_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "page.html"
    write_report(run, compare(run), [], path)
    page = Page(path.read_text())
    links = [href for href in page.values("a", "href") if not href.startswith("#")]
    assert links
    assert all((path.parent / unquote(link)).is_dir() for link in links)
    assert page.values("img", "src") == []


def test_a_run_where_everything_failed(tmp_path: Path) -> None:
    cells = [entry.cell for entry in SYNTHETIC.manifest().cells]
    run = replace(SYNTHETIC, failures=dict.fromkeys(cells, (Outcome.BOOT_FAILED, "silence"))).write(tmp_path)
    path = tmp_path / "report.html"
    write_report(run, compare(run), [], path)
    text = path.read_text()
    Page(text)
    assert "No cell ended ok with a value" in text
    assert "0 of 40" in text


def test_is_the_same_every_time(run: Run, text: str) -> None:
    path = run.path / "again.html"
    write_report(run, compare(Run.open(run.path)), [run.path / "plots" / "survivors.svg"], path)
    assert path.read_text() == text


def test_opens_with_the_three_metrics_that_a_series_is_judged_by(tmp_path: Path) -> None:
    run = Synthetic(repeat=6, ranges=True, samples=False).write(tmp_path)
    path = tmp_path / "report.html"
    write_report(run, compare(run), [], path)
    summary = path.read_text().partition('<section id="findings">')[0]
    tiles = re.findall(r'<section class="tile".*?</section>', summary, re.DOTALL)
    latency, memory, promotions = (" ".join(re.sub("<[^>]*>", " ", tile).split()) for tile in tiles)
    assert (
        latency.startswith("Fault latency")
        and "core-only@256: region_512_insns.p50 regressed: +37" in latency
    )
    assert (
        memory.startswith("Memory consumption") and "core-only@256: survivors.total improved: +613%" in memory
    )
    assert promotions.startswith("Successful promotions")
    assert "core-only@256: huge_regions.percent equivalent: +0.00%" in promotions
    assert summary.index("Fault latency") < summary.index("48 of 48")


def test_every_boot_has_its_value_on_the_page(run: Run, text: str) -> None:
    tables = re.findall(r'aria-label="Boots of chunk">(.*?)</table>', text, re.DOTALL)
    plain = " ".join(re.sub("<[^>]*>", " ", tables[0]).split())
    assert "survivors.total children baseline 15, 15, 15, 15, 15 baseline-control 15, 15, 15, 15, 15" in plain
    assert "core-only@256 107, 107, 107, 107" in plain  # one of its cells failed


def test_fits_a_phone_and_paper(text: str) -> None:
    assert 'name="viewport"' in text
    assert "@media print" in text
    assert "@media (max-width" in text
