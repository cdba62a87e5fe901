# SPDX-License-Identifier: GPL-2.0-only
"""What runs inside a machine: its image, the way in, the workloads, the counters."""
