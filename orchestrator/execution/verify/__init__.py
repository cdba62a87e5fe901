# SPDX-License-Identifier: GPL-2.0-only
"""Runs that check each stage of a series separately."""
