# SPDX-License-Identifier: GPL-2.0-only
"""What a run shows: statistics, the comparison with the baseline, its table, plots, changelog text and report."""
