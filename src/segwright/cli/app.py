"""Parse arguments in any order and turn exceptions into one-line errors and exit codes.

Besides the exit codes below, errors define their own: 75, stopped and can be resumed (`core.stopping`), and 3, another
process of the training ended (`training.heartbeat`).
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

from segwright.cli.dist_env import leave_if_one_of_several
from segwright.core.errors import SegwrightError, nearest
from segwright.core.extensions.user_code import UserCodeError
from segwright.core.resources import resource_error
from segwright.core.text import printable

EXIT_USER = 1
"""Bad input or usage: an error that the user can fix."""
EXIT_BUG = 2
"""Our own fault."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C, as shells report it."""

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's base class of usage errors; its module differs between versions, so it is taken from a public subclass."""

GLOBAL_VALUES = ("--work",)
GLOBAL_FLAGS = ("--debug", "--verbose", "-v", "--quiet", "-q")
LIST_OPTIONS = ("--config", "--configs", "-c", "--folds")
KNOWN_WORDS = frozenset({"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"})

Verb = Callable[..., Any]


class Verbs(TyperGroup):
    """The group of all commands: reorders arguments before parsing and reports every exception in one line.

    The options of a command are only built when it is called; building all would take a quarter of the time of
    `--help`.
    """

    verbs: ClassVar[Mapping[str, Verb]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return list(self.verbs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name; None if it is unknown."""
        if cmd_name not in self.verbs:
            return None
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(cmd_name)(self.verbs[cmd_name])
        return get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its first paragraph."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_paragraph(verb)) for name, verb in self.verbs.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments with global options first and list options repeated."""
        return list(super().parse_args(ctx, arrange(args, verbs=self.list_commands(ctx))))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run and exit with one of the exit codes of this module."""
        arguments = list(args[0] if args else kwargs.pop("args", None) or sys.argv[1:])
        kwargs.pop("standalone_mode", None)
        code = _guarded(lambda: TyperGroup.main(self, arguments, standalone_mode=False, **kwargs), arguments)
        leave_if_one_of_several(os.environ, code)
        sys.exit(code)


def by_name(*verbs: Verb) -> dict[str, Verb]:
    """Return functions by command name."""
    return {verb.__name__.replace("_", "-"): verb for verb in verbs}


def _first_paragraph(verb: Verb) -> str:
    return (getdoc(verb) or "").split("\n\n")[0].replace("\n", " ")


def arrange(args: Sequence[str], *, verbs: Sequence[str]) -> list[str]:
    """Return arguments with global options in front and `--config A B` written as `--config A --config B`.

    >>> arrange(["run", "4", "--work", "w", "--config", "2d", "3d_fullres"], verbs=["run"])
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
        if word in GLOBAL_VALUES and words:
            front += [word, words.pop(0)]
        elif word in GLOBAL_FLAGS or word.startswith(tuple(f"{name}=" for name in GLOBAL_VALUES)):
            front.append(word)
        elif word in LIST_OPTIONS and words:
            rest += [word, words.pop(0)]
            while words and _continues(word, words[0], rest, verbs):
                rest += [word, words.pop(0)]
        else:
            rest.append(word)
    return front + rest


def _continues(option: str, word: str, before: Sequence[str], verbs: Sequence[str]) -> bool:
    """Return whether a word after a list option is one more value, or the dataset."""
    if word.startswith("-"):
        return False
    if option == "--folds" and word.replace(",", "").isdecimal() and before[0] == "predict":
        return True
    if option != "--folds" and word in KNOWN_WORDS:
        return True
    return len(before) > 1 and before[0] in verbs and not before[1].startswith("-")


def _guarded(command: Any, arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments or "RANK" in os.environ
    try:
        code = command()
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        return EXIT_INTERRUPTED
    except typer.Exit as leaving:
        return leaving.exit_code
    except SegwrightError as error:
        if debug and isinstance(error, UserCodeError):
            traceback.print_exc()
        for line in error.lines():
            _say(f"error: {line}")
        return error.exit_code
    except USAGE_ERROR as error:
        _say(f"error: {usage_message(error)}")
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
        _say(f"error: {found}")
        return EXIT_USER
    first = (str(error).splitlines() or [""])[0]
    _say(f"error: unexpected {type(error).__name__}: {first}")
    again = "the traceback above" if debug else "the output of the same command with --debug"
    _say(f"       this is a fault of segwright, not yours; please report it to the project with {again}")
    return EXIT_BUG


def usage_message(error: Any) -> str:
    """Return a usage error as one line with the nearest option or command and where to find help."""
    context = error.ctx
    path = context.command_path if context else "segwright"
    message = error.format_message().rstrip(".").split("\n")[0]
    option = getattr(error, "option_name", None)
    if option and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        message = f"no such option '{option}'{nearest(option, [*options, '--help', *GLOBAL_VALUES])}"
    elif message.startswith("No such command") and context:
        word = message.split("'")[1]
        message = f"no such command '{word}'{nearest(word, context.command.list_commands(context))}"
    else:
        message = message[:1].lower() + message[1:]
    return f"{message.rstrip('?')}{'?' if message.endswith('?') else ''} (see '{path} --help')"


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
