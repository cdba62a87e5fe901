# SPDX-License-Identifier: GPL-2.0-only
"""Turns a kernel source and a patch series into a bootable kernel."""
