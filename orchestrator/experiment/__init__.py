# SPDX-License-Identifier: GPL-2.0-only
"""Experiments: variants x workloads x repetitions, from flags or from a file."""
