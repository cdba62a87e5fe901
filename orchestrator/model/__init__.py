# SPDX-License-Identifier: GPL-2.0-only
"""A reference model of anonymous memory with huge page reservations.

A second implementation of the series' design, which kernels are compared with. It imports
nothing else of the package, so that no code is on both sides of a comparison.
"""
