# SPDX-License-Identifier: GPL-2.0-only
"""The debugger: gdb attached to a running guest."""
