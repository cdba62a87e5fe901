# SPDX-License-Identifier: GPL-2.0-only
"""What is to be run: variants x workloads x repetitions, from flags or from a file."""
