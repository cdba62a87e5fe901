# SPDX-License-Identifier: GPL-2.0-only
"""Run directories: their schema, and what writes and reads them."""
