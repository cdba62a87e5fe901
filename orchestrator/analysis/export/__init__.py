# SPDX-License-Identifier: GPL-2.0-only
"""Exports of a run in formats for continuous integration."""
