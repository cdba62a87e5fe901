# SPDX-License-Identifier: GPL-2.0-only
"""Patches as mail: mailbox files, the outbox of an export, the cover letter."""
