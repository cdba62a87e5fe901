# SPDX-License-Identifier: GPL-2.0-only
"""The guest: its image, the SSH connection, the workloads and the counters."""
