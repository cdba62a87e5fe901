# SPDX-License-Identifier: GPL-2.0-only
"""``python -m orchestrator`` does what ``orchestrate`` does."""

import sys

from orchestrator.errors import missing_package


def start() -> None:
    """Start the command line; if it cannot be imported, name the missing package.

    Raises:
        ImportError: a module of this project is missing.
    """
    try:
        from orchestrator.cli.application import main
    except ImportError as error:
        sentence = missing_package(error)
        if sentence is None or "--debug" in sys.argv:
            raise
        sys.exit(f"orchestrate: {sentence}")
    main()


if __name__ == "__main__":
    start()
