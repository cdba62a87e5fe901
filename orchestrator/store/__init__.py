# SPDX-License-Identifier: GPL-2.0-only
"""Run directories: their schema, writers and readers."""
