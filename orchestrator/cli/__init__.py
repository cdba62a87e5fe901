# SPDX-License-Identifier: GPL-2.0-only
"""The command line: :mod:`.application` assembles it; every command has its own module."""
