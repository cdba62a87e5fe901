# SPDX-License-Identifier: GPL-2.0-only
"""A reference model of anonymous memory with huge page reservations.

A second implementation of the design of the series, to compare kernels with. It imports nothing
else from this package, so that no code is on both sides of a comparison.
"""
