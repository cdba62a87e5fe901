# SPDX-License-Identifier: GPL-2.0-only
"""Runs that compare a kernel with the reference model, operation by operation."""
