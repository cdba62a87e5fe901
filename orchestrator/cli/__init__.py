# SPDX-License-Identifier: GPL-2.0-only
"""The command line: :mod:`.application` puts it together, every other command has a module of its own."""
