"""Options of nnU-Net's commands: declared as a table, parsed as nnU-Net does, read with their types."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, NoReturn

from segwright.core.errors import ConfigError

logger = getLogger(__name__)

WORKERS: Final = "Segwright works in threads"
"""Why a number of processes has no effect where Segwright chooses the number of threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option, or an argument without a dash.

    Attributes:
        names: as they are written; the first is used to read the value.
        help: what it does, here.
        default: value if it is not given.
        kind: converts the text; None for a flag.
        is_list: takes one value or more.
        is_required: must be given.
        no_effect: why it changes nothing here; empty if it does something.
        only: the only value that can be honoured, if others would give another result; `no_effect` says why.
    """

    names: tuple[str, ...]
    help: str
    default: Any = None
    kind: Callable[[str], Any] | None = str
    is_list: bool = False
    is_required: bool = False
    no_effect: str = ""
    only: str | None = None

    @property
    def key(self) -> str:
        """The name under which the value is read."""
        return self.names[0]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the option to a parser."""
        note = f"no effect here: {self.no_effect}" if self.no_effect and self.only is None else self.help
        how: dict[str, Any] = {"help": note.replace("%", "%%")}
        if self.kind is None:
            how["action"] = "store_true"
        else:
            how |= {"type": self.kind, "metavar": self.key.lstrip("-").upper()}
            how |= {"nargs": "+"} if self.is_list else {}
        if self.key.startswith("-"):
            parser.add_argument(*self.names, dest=self.key, required=self.is_required, **how)
        else:
            parser.add_argument(self.key, **{**how, "metavar": self.key})


def value(*names: str, about: str, default: Any = None, kind: Callable[[str], Any] = str, **more: Any) -> Option:
    """Declare an option with one value."""
    return Option(names=names, help=about, default=default, kind=kind, **more)


def values(*names: str, about: str, default: Any = None, kind: Callable[[str], Any] = str, **more: Any) -> Option:
    """Declare an option with a list of values."""
    return Option(names=names, help=about, default=default, kind=kind, is_list=True, **more)


def flag(*names: str, about: str = "", **more: Any) -> Option:
    """Declare an option without a value."""
    return Option(names=names, help=about, default=False, kind=None, **more)


class Values:
    """The values of a command's options, by the name of each option."""

    def __init__(self, values: Mapping[str, Any], given: frozenset[str], words: Sequence[str]) -> None:
        self._values = values
        self.given = given
        """Names of the options that were given."""
        self.words = [*words]
        """The command and its arguments as they were given."""

    def text(self, name: str) -> str:
        """Return a value as text."""
        return str(self._values[name])

    def optional(self, name: str) -> str | None:
        """Return a value as text, or None without one."""
        return None if self._values[name] is None else str(self._values[name])

    def path(self, name: str) -> Path:
        """Return a value as a path."""
        return Path(self.text(name))

    def optional_path(self, name: str) -> Path | None:
        """Return a value as a path, or None without one."""
        found = self.optional(name)
        return None if found is None else Path(found)

    def texts(self, name: str) -> list[str]:
        """Return a list; empty without one."""
        return [str(each) for each in self._values[name] or ()]

    def numbers(self, name: str) -> list[int]:
        """Return a list of numbers; empty without one."""
        return [int(each) for each in self._values[name] or ()]

    def number(self, name: str) -> int:
        """Return a number."""
        return int(self._values[name])

    def optional_number(self, name: str) -> int | None:
        """Return a number, or None without one."""
        return None if self._values[name] is None else int(self._values[name])

    def real(self, name: str) -> float:
        """Return a real number."""
        return float(self._values[name])

    def optional_real(self, name: str) -> float | None:
        """Return a real number, or None without one."""
        return None if self._values[name] is None else float(self._values[name])

    def is_set(self, name: str) -> bool:
        """Return whether a flag was given."""
        return bool(self._values[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One of nnU-Net's commands.

    Attributes:
        function: does the work.
        options: that nnU-Net's command has.
        ignores_unknown: whether nnU-Net ignores options that it does not know.
    """

    function: Callable[[Values], None]
    options: tuple[Option, ...]
    ignores_unknown: bool = False


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of all other input."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage."""
        raise ConfigError(f"{message} (see '{self.prog} -h')")


def parse(name: str, command: Command, arguments: Sequence[str]) -> Values:
    """Parse a command's arguments; log what has no effect.

    Args:
        name: of the command, for messages.
        command: the command.
        arguments: after the name.

    Raises:
        ConfigError: an argument is missing or wrong, or has an effect that Segwright cannot give it.
        SystemExit: the help was printed.
    """
    about = (command.function.__doc__ or "").split("\n")[0]
    parser = _Parser(prog=name, description=about, argument_default=argparse.SUPPRESS)
    for option in command.options:
        option.add_to(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown and not command.ignores_unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        logger.warning("%s: %s: unknown, no effect", name, " ".join(unknown))
    given = vars(parsed)
    for option in command.options:
        if option.only is not None and given.get(option.key, option.only) != option.only:
            raise ConfigError(f"{option.key} {given[option.key]}: {option.no_effect}; leave it out")
    _warn_of_options_without_effect(name, command, given)
    return Values(
        {**{option.key: option.default for option in command.options}, **given}, frozenset(given), (name, *arguments)
    )


def _warn_of_options_without_effect(name: str, command: Command, given: Mapping[str, Any]) -> None:
    reasons: dict[str, list[str]] = {}
    for option in command.options:
        is_chosen = option.key in given and not option.is_required
        if option.no_effect and option.only is None and is_chosen:
            reasons.setdefault(option.no_effect, []).append(option.key)
    if reasons:
        parts = "; ".join(f"{', '.join(options)} ({reason})" for reason, options in reasons.items())
        logger.warning("%s: no effect here: %s", name, parts)
