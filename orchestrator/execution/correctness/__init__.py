# SPDX-License-Identifier: GPL-2.0-only
"""Runs that test correctness: suites on a patched kernel and on the baseline."""
