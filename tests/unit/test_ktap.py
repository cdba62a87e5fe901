# SPDX-License-Identifier: GPL-2.0-only
"""Results of tests, as programs in a guest print them."""

from __future__ import annotations

from orchestrator.guest.ktap import Status, TestResult, parse_khugepaged, parse_ktap

KSELFTEST = """\
TAP version 13
1..4
# [INFO] detected THP size: 2048 KiB
ok 1 Basic COW after fork() ... with base page
# page 3 is wrong
not ok 2 R/O longterm pin # see above
ok 3 # SKIP need more memory
ok 4 Basic COW after fork() ... with base page
# Totals: pass:2 fail:1 xfail:0 xpass:0 skip:1 error:0
"""


def test_results_have_the_output_before_them() -> None:
    results, fault = parse_ktap(KSELFTEST.splitlines())
    assert results == [
        TestResult(
            "Basic COW after fork() ... with base page", Status.PASSED, "[INFO] detected THP size: 2048 KiB"
        ),
        TestResult("R/O longterm pin", Status.FAILED, "page 3 is wrong\nsee above"),
        TestResult("3", Status.SKIPPED, "need more memory"),
        TestResult("Basic COW after fork() ... with base page (2)", Status.PASSED),
    ]
    assert fault == ""


def test_output_that_ends_early_is_a_fault() -> None:
    results, fault = parse_ktap(["1..3", "ok 1 one", "# about to touch the second"])
    assert [result.name for result in results] == ["one"]
    assert fault == "1 of 3 planned tests have a result; the last line is: about to touch the second"


def test_a_plan_of_nothing_and_output_without_a_plan() -> None:
    assert parse_ktap(["1..0 # SKIP no such thing"]) == ([], "")
    assert parse_ktap(["hello", "[PASS]"]) == ([], "")


def test_an_expected_failure_is_not_a_failure() -> None:
    (result,), fault = parse_ktap(["1..1", "ok 1 strange # XFAIL known"])
    assert (result.status, fault) == (Status.PASSED, "")


def test_a_name_with_a_dash_and_an_indented_line() -> None:
    (result,), _ = parse_ktap(["1..1", "    ok 1 - hugepage size"])
    assert result.name == "hugepage size"


KHUGEPAGED = """\
Save THP and khugepaged settings... OK

Run test: collapse_full (khugepaged:anon)
Allocate huge page... OK
Collapse fully populated PTE table (3 MB).... \x1b[32mOK\x1b[0m
Check validity... OK

Run test: collapse_empty (khugepaged:anon)
Do not collapse empty PTE table... \x1b[31mFail\x1b[0m
Check... OK

Run test: collapse_swapin_single_pte (khugepaged:anon)
Swapout one page... Skip (MADV_PAGEOUT)

Run test: collapse_max_ptes_none (khugepaged:anon)
Segmentation fault
"""


def test_khugepagedes_selftest_says_it_in_its_own_way() -> None:
    results = parse_khugepaged(KHUGEPAGED.splitlines())
    assert [(result.name, result.status) for result in results] == [
        ("collapse_full (khugepaged:anon)", Status.PASSED),
        ("collapse_empty (khugepaged:anon)", Status.FAILED),
        ("collapse_swapin_single_pte (khugepaged:anon)", Status.SKIPPED),
        ("collapse_max_ptes_none (khugepaged:anon)", Status.FAILED),
    ]
    assert results[1].text == "Do not collapse empty PTE table... Fail"
