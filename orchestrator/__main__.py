# SPDX-License-Identifier: GPL-2.0-only
"""``python -m orchestrator`` does what ``orchestrate`` does."""

from orchestrator.cli.application import main

if __name__ == "__main__":
    main()
