# SPDX-License-Identifier: GPL-2.0-only
"""``orchestrate try``: the shortest answer after a change."""
