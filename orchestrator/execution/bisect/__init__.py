# SPDX-License-Identifier: GPL-2.0-only
"""Runs that search for the first bad stage of a series."""
