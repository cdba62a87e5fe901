# SPDX-License-Identifier: GPL-2.0-only
"""Experiments on Linux kernel patch series: build, boot, measure, compare, bisect."""

__version__ = "0.1.0"
