# SPDX-License-Identifier: GPL-2.0-only
"""Runs that measure: variants, workloads and repetitions, compared with the baseline."""
