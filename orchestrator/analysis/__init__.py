# SPDX-License-Identifier: GPL-2.0-only
"""Analysis of a run: statistics, comparison with the baseline, table, plots, changelog text and report."""
