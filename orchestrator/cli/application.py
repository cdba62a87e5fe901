# SPDX-License-Identifier: GPL-2.0-only
"""The command ``orchestrate``: one module a command, each thin: parse, call, print."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer

from orchestrator import __version__
from orchestrator.cli import (
    bisect,
    boot,
    build,
    calibrate,
    changelog,
    check,
    compare,
    debug,
    doctor,
    exec_,
    plot,
    report,
    results,
    run,
    series,
    shell,
    simulate,
    test,
)
from orchestrator.cli.terminal import Terminal
from orchestrator.errors import OrchestrateError

#: What a wrong command line raises. Some versions of typer carry a click of their own.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="orchestrate",
    help="Experiments on Linux kernel patch series: build, boot, measure, compare, bisect.",
    epilog="Example: orchestrate run --patchset core-only",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[/CPUS]" in a help text is no markup
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (
    run,
    check,
    bisect,
    build,
    boot,
    shell,
    simulate,
    exec_,
    compare,
    plot,
    changelog,
    report,
    debug,
    doctor,
    calibrate,
    test,
):
    app.command(module.NAME, epilog=module.EXAMPLE)(module.command)
app.add_typer(series.app, name="series")
app.add_typer(results.app, name="results")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"orchestrate {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Results and errors only, no progress.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log each program that is started.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that every command shares; they stand before the command's name."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("paramiko", "matplotlib", "PIL", "qemu", "asyncio", "filelock"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL if not debug else logging.WARNING)
    context.obj = Terminal(quiet=quiet, verbose=verbose, debug=debug)


def main() -> None:
    """Run the command line; ends the process with one of the documented exit statuses."""
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: list[str]) -> int:
    """Run one command line and return its exit status: 0, 1, 2, 3 or 130."""
    with_traceback = "--debug" in arguments
    try:
        status = app(arguments, standalone_mode=False, prog_name="orchestrate")
    except _UsageError as error:
        error.show()
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted; what was measured until now is kept.")
        return 130
    except OrchestrateError as error:
        if with_traceback:
            raise
        _say(str(error))
        if error.log is not None:
            _say(f"the log is {error.log}")
        return error.exit_status
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk, a directory without permission
        if with_traceback:
            raise
        _say(f"{error.strerror or error} ({error.filename})" if error.filename else str(error))
        return 1
    return status if isinstance(status, int) else 0


def _say(message: str) -> None:
    typer.echo(f"orchestrate: {message}", err=True)
