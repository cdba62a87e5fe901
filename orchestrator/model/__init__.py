# SPDX-License-Identifier: GPL-2.0-only
"""A reference model of anonymous memory with huge page reservations.

It imports nothing of the rest of the package: what it predicts is compared with
kernels, so that it must not share their mistakes or the harness's.
"""
