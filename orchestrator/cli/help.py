# SPDX-License-Identifier: GPL-2.0-only
"""Formatting of help texts: plain text, commands by group, and examples on one line for copying."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from orchestrator.cli.interruption import CommandEnded, interruption_of
from orchestrator.spelling import near


class _NearSuggestions:
    """Common code of commands and groups: suggest only similar options, not all that the library finds."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Like the library, but without suggestions that are not similar."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except Exception as error:
            _keep_near(error)
            raise


class Command(_NearSuggestions, TyperCommand):
    """A command whose help has no Python types, and whose errors suggest only similar options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[OPTIONS] RUN [OTHER]``: arguments with the names used in the help."""
        return ["[OPTIONS]", *(_usage_of(each) for each in self.get_params(ctx) if _is_argument(each))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options."""
        _format_parameters(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, unwrapped."""
        _format_example(self, formatter)


class ArgvCommand(Command):
    """A command that takes another command line as arguments, whose options are not its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Like the library, but an error tells where options of the other command belong."""
        given = list(args)  # the parser consumes its list
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if hasattr(error, "format_message") and "--" not in given:
                example = f"after --, e.g. {ctx.command_path} -p baseline -- ls -la"
                if (
                    type(error).__name__ == "MissingParameter"
                ):  # the library puts what is missing before the message
                    error.message = f"Put the command for the guest {example}"  # type: ignore[attr-defined]
                else:
                    error.possibilities = None  # type: ignore[attr-defined]
                    error.message = (  # type: ignore[attr-defined]
                        f"{error.format_message().rstrip('.')}. If it belongs to the command for the guest, put that "
                        f"command {example}"
                    )
            raise


class Group(_NearSuggestions, TyperGroup):
    """A group of commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Like the library, but suggest only a similar command."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            close = near(args[0], self.list_commands(ctx))
            hint = f"did you mean {close}?" if close else f"{ctx.command_path} --help lists them."
            ctx.fail(f"Unknown command {args[0]}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an interruption passes Typer with its signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise CommandEnded(interruption_of(error)) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """All commands with their complete summaries."""
        rows = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary_of(command)) for name, command in rows])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options, then commands."""
        _format_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, unwrapped."""
        _format_example(self, formatter)


@dataclass(frozen=True)
class Listed:
    """A command that is imported when it is used.

    Args:
        module: name of a module with either ``app`` (a group of commands), or ``NAME``, ``EXAMPLE`` and ``command``,
            and optionally ``CLASS``, the class of the command.
        section: section of the help.
        summary: one line of help.
    """

    module: str
    section: str
    summary: str


class LazyGroup(Group):
    """Commands whose modules are imported when they are used; the list of commands imports none."""

    #: Name -> command, in the order of the help.
    listed: ClassVar[Mapping[str, Listed]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return list(self.listed)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return the command `cmd_name`; None if there is none."""
        if cmd_name in self.listed and cmd_name not in self.commands:
            self.commands[cmd_name] = _imported(
                cmd_name, importlib.import_module(self.listed[cmd_name].module)
            )
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """All commands with their summaries, by section."""
        width = max(map(len, self.listed))
        for section in dict.fromkeys(each.section for each in self.listed.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name.ljust(width), each.summary)
                        for name, each in self.listed.items()
                        if each.section == section
                    ]
                )

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Completions, without importing every command."""
        for name in self.listed:
            self.get_command(ctx, name)
        return super().shell_complete(ctx, incomplete)


def _imported(name: str, module: Any) -> Any:
    if hasattr(module, "app"):
        module.app.info.cls = Group
        for command in module.app.registered_commands:
            command.cls = Command
        group = typer.main.get_group(module.app)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(module.NAME, cls=getattr(module, "CLASS", Command), epilog=module.EXAMPLE)(module.command)
    return typer.main.get_command(single)


def _keep_near(error: Exception) -> None:
    possible = getattr(error, "possibilities", None)
    if possible:
        close = near(str(getattr(error, "option_name", "")), possible)
        error.possibilities = [close] if close else None  # type: ignore[attr-defined]


def _summary_of(command: Any) -> str:
    first = (command.short_help or command.help or "").strip().partition("\n\n")[0]
    return " ".join(first.split())


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _usage_of(argument: Any) -> str:
    name = _name_of(argument)
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _in_words(text: str) -> str:
    """Write the library's ``1<=x<=9`` and ``x>=1`` in words."""
    return re.sub(r"\bx>=(\d+)", r"at least \1", re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", text))


def _format_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        if _is_argument(parameter):
            # Omit what the library adds: the type, and whether it is required, which the usage line shows.
            sections["Arguments"].append((_name_of(parameter), parameter.help or ""))
        else:
            sections["Options"].append((record[0], _in_words(record[1])))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _format_example(command: Any, formatter: Any) -> None:
    if command.epilog:
        formatter.write_paragraph()
        formatter.write(f"  {command.epilog}\n")
