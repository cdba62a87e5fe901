# SPDX-License-Identifier: GPL-2.0-only
"""The report's page in a real browser: on a wide screen, on a phone, in print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from synthetic_run import Synthetic

from orchestrator.analysis.comparison import compare
from orchestrator.analysis.plots import plot_run
from orchestrator.analysis.report import write_report
from orchestrator.store.outcome import Outcome

OOPS = "BUG: bad page state\n<script>document.title = 'taken over'</script>" + "x" * 300


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    failures = {"core-only@256.chunk.2": (Outcome.KERNEL_BUG, OOPS), "baseline.chunk.1": (Outcome.LOST, "")}
    run = Synthetic(failures=failures).write(tmp_path_factory.mktemp("results"))
    path = run.path / "report.html"
    write_report(run, compare(run), plot_run(run, run.path / "plots"), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    options = ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service("/usr/bin/chromedriver")) as browser:
        yield browser


def shown(browser: Chrome) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#cell-table tbody tr")
    return [row.find_element(By.TAG_NAME, "td").text for row in rows if row.is_displayed()]


def complaints(browser: Chrome) -> list[str]:
    return [str(entry["message"]) for entry in browser.get_log("browser")]


def test_cells_are_filtered_by_outcome_and_by_words(chrome: Chrome, page: str) -> None:
    chrome.get(page)
    assert len(shown(chrome)) == 40
    Select(chrome.find_element(By.NAME, "outcome")).select_by_value("not-ok")
    assert sorted(shown(chrome)) == ["baseline.chunk.1", "core-only@256.chunk.2"]
    chrome.find_element(By.NAME, "text").send_keys("page bug")
    assert shown(chrome) == ["core-only@256.chunk.2"]
    assert chrome.find_element(By.CSS_SELECTOR, "#cell-filter output").text == "1 of 40 cells"
    assert complaints(chrome) == []


def test_a_filter_is_part_of_the_address(chrome: Chrome, page: str) -> None:
    chrome.get("about:blank")
    chrome.get(f"{page}#cells?outcome=lost")
    assert shown(chrome) == ["baseline.chunk.1"]


def test_what_the_guest_printed_does_not_run(chrome: Chrome, page: str) -> None:
    chrome.get(page)
    assert chrome.title != "taken over"


@pytest.mark.parametrize("width", [360, 390, 768, 1400])
def test_nothing_is_wider_than_the_screen(chrome: Chrome, page: str, width: int, tmp_path: Path) -> None:
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    chrome.get(page)
    try:
        widest = chrome.execute_script("return document.documentElement.scrollWidth")
        assert widest <= width
        assert all(plot.size["width"] > 0 for plot in chrome.find_elements(By.TAG_NAME, "img"))
    finally:
        chrome.save_screenshot(str(tmp_path / f"{width}.png"))
        chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints(chrome: Chrome, page: str) -> None:
    chrome.get(page)
    printed = chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(printed["data"]) > 50_000
