# SPDX-License-Identifier: GPL-2.0-only
"""Run cells: build what they need, boot, measure, record."""
