# SPDX-License-Identifier: GPL-2.0-only
"""From a source and a staged series to a kernel that boots."""
