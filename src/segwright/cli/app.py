"""Parse arguments in any order and turn exceptions into one-line errors and exit codes.

Besides the exit codes below, errors define their own: 75, stopped and can be resumed (`core.interrupt`), and 3, another
process of the training ended (`training.distributed.heartbeat`).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from inspect import getdoc
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command

from segwright.cli.dist_env import hard_exit_if_distributed
from segwright.core.errors import SegwrightError, did_you_mean
from segwright.core.extensions.user_code import UserCodeError
from segwright.core.resources import resource_error
from segwright.core.text import printable

EXIT_USER = 1
"""Bad input or usage: an error that the user can fix."""
EXIT_BUG = 2
"""A bug in Segwright."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C, as shells report it."""

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's base class of usage errors; its module differs between versions, so it is taken from a public subclass."""

GLOBAL_OPTIONS = ("--work",)
GLOBAL_FLAGS = ("--debug", "--verbose", "-v", "--quiet", "-q")
LIST_OPTIONS = ("--config", "--configs", "-c", "--folds")
CONFIGURATIONS = frozenset({"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"})

Command = Callable[..., Any]
"""A function whose annotated parameters are the options of a command."""


class CommandGroup(TyperGroup):
    """The group of all commands: reorders arguments before parsing and reports every exception in one line.

    The options of a command are only built when it is called; building all would take a quarter of the time of
    `--help`.
    """

    functions: ClassVar[Mapping[str, Command]] = {}
    """Of the commands, by name; set by a subclass."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(self.functions)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name; None if it is unknown."""
        if cmd_name not in self.functions:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(self.functions[cmd_name])
        return get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its first paragraph."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_paragraph(function)) for name, function in self.functions.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments with global options first and list options repeated."""
        return list(super().parse_args(ctx, reorder_arguments(args, commands=self.list_commands(ctx))))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run and exit with one of the exit codes of this module."""
        arguments = list(args[0] if args else kwargs.pop("args", None) or sys.argv[1:])
        kwargs.pop("standalone_mode", None)
        code = exit_code_of(lambda: TyperGroup.main(self, arguments, standalone_mode=False, **kwargs), arguments)
        hard_exit_if_distributed(os.environ, code)
        sys.exit(code)


def by_name(*functions: Command) -> dict[str, Command]:
    """Return functions by command name, which is the function's with hyphens."""
    return {function.__name__.replace("_", "-"): function for function in functions}


def reorder_arguments(args: Sequence[str], *, commands: Sequence[str]) -> list[str]:
    """Return arguments with global options in front and `--config A B` written as `--config A --config B`.

    >>> reorder_arguments(["run", "4", "--work", "w", "--config", "2d", "3d_fullres"], commands=["run"])
    ['--work', 'w', 'run', '4', '--config', '2d', '--config', '3d_fullres']
    """
    front: list[str] = []
    rest: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        if word in GLOBAL_OPTIONS and words:
            front += [word, words.pop(0)]
        elif word in GLOBAL_FLAGS or word.startswith(tuple(f"{name}=" for name in GLOBAL_OPTIONS)):
            front.append(word)
        elif word in LIST_OPTIONS and words:
            rest += [word, words.pop(0)]
            while words and _belongs_to_list(word, words[0], rest, commands):
                rest += [word, words.pop(0)]
        else:
            rest.append(word)
    return front + rest


def _first_paragraph(function: Command) -> str:
    return (getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def _belongs_to_list(option: str, word: str, before: Sequence[str], commands: Sequence[str]) -> bool:
    """Return whether a word after a list option is one more value of it, rather than the dataset.

    Args:
        option: the list option.
        word: the word in question.
        before: all words before it, from the command on.
        commands: names of all commands.
    """
    if word.startswith("-"):
        return False
    if option == "--folds" and word.replace(",", "").isdecimal() and before[0] == "predict":
        return True
    if option != "--folds" and word in CONFIGURATIONS:
        return True
    return len(before) > 1 and before[0] in commands and not before[1].startswith("-")


def exit_code_of(command: Any, arguments: Sequence[str]) -> int:
    """Run a command, print its error if it fails, and return the exit code."""
    debug = "--debug" in arguments or "RANK" in os.environ
    try:
        code = command()
    except (KeyboardInterrupt, typer.Abort):
        _print_error("stopped")
        return EXIT_INTERRUPTED
    except typer.Exit as finished:
        return finished.exit_code
    except SegwrightError as error:
        if debug and isinstance(error, UserCodeError):
            traceback.print_exc()
        for line in error.lines():
            _print_error(f"error: {line}")
        return error.exit_code
    except USAGE_ERROR as error:
        _print_error(f"error: {usage_message(error)}")
        return EXIT_USER
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER
    except Exception as error:
        return _unexpected(error, debug=debug)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if found := resource_error(error):
        _print_error(f"error: {found}")
        return EXIT_USER
    first_line = (str(error).splitlines() or [""])[0]
    _print_error(f"error: unexpected {type(error).__name__}: {first_line}")
    details = "the traceback above" if debug else "the output of the same command with --debug"
    _print_error(f"       this is a bug in segwright; please report it to the project with {details}")
    return EXIT_BUG


def usage_message(error: Any) -> str:
    """Return a usage error as one line with the nearest option or command and where to find help."""
    context = error.ctx
    path = context.command_path if context else "segwright"
    message = error.format_message().rstrip(".").split("\n")[0]
    option = getattr(error, "option_name", None)
    if option and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        message = f"no such option '{option}'{did_you_mean(option, [*options, '--help', *GLOBAL_OPTIONS])}"
    elif message.startswith("No such command") and context:
        word = message.split("'")[1]
        message = f"no such command '{word}'{did_you_mean(word, context.command.list_commands(context))}"
    else:
        message = message[:1].lower() + message[1:]
    return f"{message.rstrip('?')}{'?' if message.endswith('?') else ''} (see '{path} --help')"


def _print_error(line: str) -> None:
    print(printable(line), file=sys.stderr)
