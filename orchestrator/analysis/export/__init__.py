# SPDX-License-Identifier: GPL-2.0-only
"""What a run shows, in the formats that continuous integration reads."""
