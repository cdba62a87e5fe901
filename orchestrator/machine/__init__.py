# SPDX-License-Identifier: GPL-2.0-only
"""The machine: topology, accelerator, the QEMU process, its console, and what the kernel says of itself."""
