# SPDX-License-Identifier: GPL-2.0-only
"""The emulated machine: topology, accelerator, QEMU process, console, and the kernel's reports on it."""
