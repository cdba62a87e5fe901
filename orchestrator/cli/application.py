# SPDX-License-Identifier: GPL-2.0-only
"""The command ``orchestrate``: one module per command, which only parses, calls and prints."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from orchestrator.cli.help import LazyGroup, Listed
from orchestrator.cli.interruption import CommandEnded, interruption_of
from orchestrator.cli.terminal import Terminal
from orchestrator.errors import InfrastructureError, OrchestrateError, missing_package
from orchestrator.printable import printable

#: The exception for a wrong command line. Some versions of typer contain their own copy of click.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

#: Open files of a command: the fewest with which one guest runs, and enough for many guests at a time.
_FEWEST_FILES = 128
_ENOUGH_FILES = 4096
#: Bytes of address space with which a command works: stacks of threads and libraries reserve much that they never use.
_LEAST_ADDRESS_SPACE = 2 << 30

#: What no file can have as its name is a mistake of the command line; everything else is the host's failure.
_BAD_NAME = {
    errno.ENAMETOOLONG: "no file can have a name as long as this; give a shorter one",
    errno.ELOOP: "its symbolic links point at each other; give the file that is meant",
}

_RUN = "Run"
_LOOK = "Inspect runs"
_SERIES = "The series"
_GUEST = "One guest"
_HOST = "The host"


class _Commands(LazyGroup):
    listed: ClassVar[Mapping[str, Listed]] = {
        "run": Listed(
            "orchestrator.cli.run", _RUN, "Build, boot, measure and compare variants with the baseline."
        ),
        "try": Listed(
            "orchestrator.cli.try_",
            _RUN,
            "Run a workload once before and after a change; the shortest answer.",
        ),
        "check": Listed(
            "orchestrator.cli.check", _RUN, "Compare a guest with the reference model on random operations."
        ),
        "test": Listed(
            "orchestrator.cli.test", _RUN, "Run correctness tests on kernels with debug checks enabled."
        ),
        "bisect": Listed(
            "orchestrator.cli.bisect", _RUN, "Find the first stage that shows an outcome or moves a metric."
        ),
        "decode": Listed(
            "orchestrator.cli.decode",
            _LOOK,
            "Show the source lines of the kernel's reports in a console log.",
        ),
        "simulate": Listed(
            "orchestrator.cli.simulate", _RUN, "Calculate the chunk test for a machine of any size."
        ),
        "list": Listed("orchestrator.cli.list_", _RUN, "List workloads, knobs, patchsets or configurations."),
        "results": Listed("orchestrator.cli.results", _LOOK, "List and show runs; clean up the cache."),
        "compare": Listed(
            "orchestrator.cli.compare", _LOOK, "Print the comparison table of a run, or of two runs."
        ),
        "plot": Listed("orchestrator.cli.plot", _LOOK, "Draw the plots of a run."),
        "report": Listed(
            "orchestrator.cli.report", _LOOK, "Write a run's report as HTML, JUnit, KTAP or KCIDB."
        ),
        "changelog": Listed("orchestrator.cli.changelog", _LOOK, "Print text for the changelog of a patch."),
        "series": Listed("orchestrator.cli.series", _SERIES, "List, show, verify and export the stages."),
        "build": Listed("orchestrator.cli.build", _SERIES, "Build the kernel of a variant."),
        "sizes": Listed(
            "orchestrator.cli.sizes", _SERIES, "Show what a patchset adds to functions and structures."
        ),
        "boot": Listed("orchestrator.cli.boot", _GUEST, "Boot a variant and keep it running until Ctrl-C."),
        "shell": Listed("orchestrator.cli.shell", _GUEST, "Boot a variant and open a shell in it."),
        "exec": Listed("orchestrator.cli.exec_", _GUEST, "Boot a variant and run one command in it."),
        "debug": Listed("orchestrator.cli.debug", _GUEST, "Boot a variant with gdb attached."),
        "inspect": Listed(
            "orchestrator.cli.inspect", _GUEST, "Show and check the reservations in a guest's memory."
        ),
        "doctor": Listed(
            "orchestrator.cli.doctor",
            _HOST,
            "Check what this host has, what is missing and how to install it.",
        ),
        "calibrate": Listed(
            "orchestrator.cli.calibrate",
            _HOST,
            "Compare page fault times on this host with instruction counts.",
        ),
    }


app = typer.Typer(
    name="orchestrate",
    cls=_Commands,
    help="Experiments on Linux kernel patch series: build, boot, measure, compare, bisect.",
    epilog="Example: orchestrate run --patchset core-only",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[/CPUS]" in a help text is not markup
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from orchestrator import __version__

        typer.echo(f"orchestrate {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only, no progress.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log each program that is started.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options common to all commands; they are given before the name of the command."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("paramiko", "matplotlib", "PIL", "qemu", "asyncio", "filelock"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL if not debug else logging.WARNING)
    _check_open_files()
    _check_address_space()
    context.obj = Terminal(quiet=quiet, verbose=verbose, debug=debug)


def _check_open_files() -> None:
    """Use as many file descriptors as the host allows, up to a limit.

    Raises:
        InfrastructureError: too few for a command; programs would fail in ways that do not tell why.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _ENOUGH_FILES:
        soft = min(hard, _ENOUGH_FILES) if hard != resource.RLIM_INFINITY else _ENOUGH_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < _FEWEST_FILES:
        raise InfrastructureError(
            f"this process may have only {soft} files open, and needs {_FEWEST_FILES}; raise the limit with: "
            f"ulimit -n {_ENOUGH_FILES}"
        )


def _check_address_space() -> None:
    """Refuse to start where the libraries for numbers would abort the process instead of raising an error.

    Raises:
        InfrastructureError: the limit of the address space is too low for a command.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_ADDRESS_SPACE:
        raise InfrastructureError(
            f"this process may have only {soft >> 20} MiB of address space, and needs {_LEAST_ADDRESS_SPACE >> 20}; "
            "raise the limit with: ulimit -v unlimited"
        )


def main() -> None:
    """Run the command line; exits with one of the documented exit statuses."""
    for stream in (sys.stdout, sys.stderr):
        # A title may have characters that the terminal's encoding lacks.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: list[str]) -> int:
    """Run one command line and return its exit status: 0, 1, 2, 3, or 128 plus the signal that ended it."""
    # After the name of the command, --debug may be an option of a program in the guest.
    with_traceback = "--debug" in takewhile(lambda word: word.startswith("-"), arguments)
    try:
        Path.cwd()
    except FileNotFoundError:
        _say("the working directory was deleted; change to another one.")
        return 2
    try:
        status = app(arguments, standalone_mode=False, prog_name="orchestrate")
    except _UsageError as error:
        error.show()
        return int(error.exit_code)
    except (CommandEnded, typer.Abort, KeyboardInterrupt) as error:
        interrupted = interruption_of(error)
        how = "interrupted" if interrupted.signal == signal.SIGINT else f"ended by {interrupted.signal.name}"
        _say(f"{how}; all measurements so far are kept.")
        return interrupted.exit_status
    except OrchestrateError as error:
        if with_traceback:
            raise
        _say(str(error))
        if error.log is not None:
            _say(f"the log is {error.log}")
        return error.exit_status
    except ImportError as error:  # most packages are only imported by the command that needs them
        sentence = missing_package(error)
        if sentence is None or with_traceback:
            raise
        _say(sentence)
        return 1
    except BrokenPipeError:
        return 1
    except (MemoryError, RuntimeError) as error:
        # A thread needs memory for its stack, and a PID.
        if with_traceback or (isinstance(error, RuntimeError) and "start new thread" not in str(error)):
            raise
        _say("this host has no memory left for the command; end other programs, or use fewer --jobs.")
        return 1
    except OSError as error:  # a full disk, a directory without permission
        if with_traceback:
            raise
        if error.errno in _BAD_NAME and error.filename:
            _say(f"{_BAD_NAME[error.errno]}: {error.filename}")
            return 2
        _say(f"{error.strerror or error}{_place_of(error)}")
        return 1
    return status if isinstance(status, int) else 0


def _place_of(error: OSError) -> str:
    """The file of an error, or the full disk if the error does not know its file."""
    if error.filename:
        return f" ({error.filename})"
    if error.errno != errno.ENOSPC:
        return ""
    terminal = Terminal()
    full = []
    for place in (Path(tempfile.gettempdir()), terminal.cache.root, terminal.project.results):
        with suppress(OSError):
            if os.statvfs(place).f_bavail == 0:
                full.append(str(place))
    return f": {', '.join(full)}" if full else ""


def _say(message: str) -> None:
    typer.echo(f"orchestrate: {printable(message)}", err=True)
