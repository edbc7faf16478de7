"""What all programs share: options made from the settings, output, errors as one line."""

from __future__ import annotations

import functools
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

from smallm.errors import SmallmError
from smallm.settings import fields, groups_of_fields, overlaid, read_yaml

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[..., Any]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class Several(click.ParamType[tuple[Any, ...]]):
    """Several values separated by commas, such as 42,43,44 or cs.LG,stat.ML."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.name = "names" if kind is str else "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """The values as a tuple."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            found = tuple(self.kind(part.strip()) for part in value.split(",") if part.strip())
            if not found:
                self.fail(f"{value!r} names nothing", param, ctx)
            return found
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 42,43,44", param, ctx)


class PathOrUrl(click.ParamType[str]):
    """A path, made absolute, or a URL such as s3://bucket/dumps."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The absolute path, or the URL."""
        if not value:
            self.fail("is empty: it must name a file, a folder or a URL", param, ctx)
        return str(value) if "://" in str(value) else str(Path(value).expanduser().resolve())

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Files and folders."""
        return [CompletionItem(incomplete, type="file")]


def storage_option(what: str) -> Callable[[Command], Command]:
    """The option of programs that keep `what` in one storage for all machines."""
    return click.option(
        "--storage",
        type=PathOrUrl(),
        envvar="SMALLM_STORAGE",
        help="A folder that all machines share, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER: "
        f"{what} kept there. [default: SMALLM_STORAGE]",
    )


class Temperature(click.ParamType[float | str]):
    """A number from 0 up, or `fitted`: the temperature that makes the model's text most likely."""

    name = "temperature"
    FITTED = "fitted"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | str:
        """The number, or FITTED."""
        if value == self.FITTED:
            return self.FITTED
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"{value!r} is neither a number from 0 up nor `{self.FITTED}`", param, ctx)
        return number


def settings_options(
    *groups: str, without: Collection[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Gives a command a flag for every setting of the groups, and `--config`.

    It has no flag `without` which it does, and tells of its own `defaults` in its help.

    The command receives `given`: the flat settings that the user chose. Flags win over the file.
    `Settings.from_flat(given)` checks them and adds the defaults; a command that has its own adds
    those before.
    """
    names = [
        name
        for name, group in groups_of_fields().items()
        if group in groups and name not in without
    ]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collect(*args: Any, config: Path | None, **kwargs: Any) -> Any:
            flags = {name: kwargs.pop(name) for name in names}
            chosen = {name: value for name, value in flags.items() if value is not None}
            given = overlaid(read_yaml(config) if config else {}, chosen)
            return command(*args, given=given, **kwargs)

        for name in reversed(names):
            _option(name, fields()[name], defaults.get(name))(collect)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="YAML file of settings; flags win over it.",
        )(collect)

    return decorate


def _option(name: str, info: FieldInfo, default: Any) -> Callable[[Any], Any]:
    kind: Any = info.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    flag = f"--{name.replace('_', '-')}"
    shown = info.get_default() if default is None else default
    shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
    text = f"{info.description}" + ("" if shown is None else f" [default: {shown}]")
    options: dict[str, Any] = {"default": None, "help": text}
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, **options)
    if typing.get_origin(kind) is typing.Literal:
        options["type"] = click.Choice([str(each) for each in typing.get_args(kind)])
    elif typing.get_origin(kind) is tuple:
        options["type"] = Several(typing.get_args(kind)[0])
    elif typing.get_origin(kind) is Annotated:
        options["type"] = PathOrUrl()
    elif kind is Path:
        options["type"] = click.Path(path_type=Path, resolve_path=True)
    else:
        options["type"] = kind
    return click.option(flag, name, **options)


def examples(*lines: str) -> str:
    """The end of a help text, which click leaves unwrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def messages() -> Console:
    """Where progress is shown: on stderr, and what moves only on a terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Prints what a program would read."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


def run_program(command: click.Command) -> NoReturn:
    """Runs a program: bad input is one line on stderr and exit code 1, wrong usage 2."""
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except SmallmError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        code = 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = 130
    except (MemoryError, RuntimeError) as error:
        from smallm.hardware import out_of_memory  # imports torch

        if not (why := out_of_memory(error)):
            raise
        click.echo(f"error: {why}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
