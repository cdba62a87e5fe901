# SPDX-License-Identifier: GPL-2.0-only
"""``python -m orchestrator`` does what ``orchestrate`` does."""

import sys
from collections.abc import Callable

from orchestrator.cli.interruption import Interruption, interruption_of
from orchestrator.errors import missing_package


def start(prepare: Callable[[], object] = lambda: None) -> None:
    """Start the command line; if it cannot be imported, name the missing package.

    Args:
        prepare: called when signals are handled, before the command line is imported.

    Raises:
        ImportError: a module of this project is missing.
    """
    interruption = Interruption()
    interruption.install()
    try:
        prepare()
        from orchestrator.cli.application import main
    except ImportError as error:
        sentence = missing_package(error)
        if sentence is None or "--debug" in sys.argv:
            raise
        sys.exit(f"orchestrate: {sentence}")
    except KeyboardInterrupt as error:
        interruption.ignore()
        sys.exit(interruption_of(error).exit_status)
    try:
        main()
    finally:
        # The interpreter takes a moment to end, and a signal would then look like another end.
        interruption.ignore()


if __name__ == "__main__":
    start()
