"""What every command shares: the application, errors as one line and an exit code, plain text or one JSON object."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from sparring._version import __version__
from sparring.core.errors import LoadError, MissingDependencyError, SparringError, VictimError

DONE, HELD, USAGE, MISSING, UNLOADED, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130

_ABOUT = "Attack machine-learning models, defend them, and say with evidence how robust they are."
_EXIT_CODES = (
    "Exit codes: 0 done; 1 the attack did not succeed; 2 bad usage or input; 3 a package is missing; "
    "4 a picture, URL or model could not be loaded, or the model failed; 70 a bug in sparring; 130 interrupted."
)


def start() -> typer.Typer:
    """The application, still without commands. Its help is plain: rich's would take a third of the start-up."""
    app = typer.Typer(
        help=_ABOUT,
        epilog=_EXIT_CODES,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sparring {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show an error's traceback. Works anywhere on the line.")
    ] = False,
) -> None:
    pass


def run(build: Callable[[], Any], arguments: list[str] | None) -> int:
    """Build the application, run one command, and turn whatever it raises into an exit code.

    With `--json` anywhere on the line an error is one JSON object on stdout: {"error": message, "kind": name}.
    """
    if os.getcwd() not in sys.path:  # a model's builder in this folder is found, after everything that is installed
        sys.path.append(os.getcwd())
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug, as_json = "--debug" in options, "--json" in options
    if debug:
        words.remove("--debug")
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        try:
            code = build()(args=words, prog_name="sparring", standalone_mode=False)
            sys.stdout.flush()
            if code == INTERRUPTED:  # newer typers turn Ctrl-C into this code by themselves
                raise KeyboardInterrupt
            return code if isinstance(code, int) else DONE
        except BrokenPipeError:  # the reader, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except (KeyboardInterrupt, typer.Abort) as error:
            return _failed(error, "interrupted", INTERRUPTED, as_json, debug)
        except Exception as error:
            message, code = _explained(error)
            return _failed(error, message, code, as_json, debug)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit code that goes with it."""
    if hasattr(error, "format_message"):  # typer's own usage errors, whichever click it carries
        context = getattr(error, "ctx", None)
        hint = f" Try '{context.command_path} --help'." if context is not None else ""
        said = error.format_message()
        end = "" if not said or said[-1] in ".?!)" else "."
        return f"{said}{end}{hint}", int(getattr(error, "exit_code", USAGE))
    if isinstance(error, MissingDependencyError):
        return str(error), MISSING
    if isinstance(error, LoadError) or type(error) is VictimError:
        return str(error), UNLOADED
    if isinstance(error, SparringError):
        return str(error), USAGE
    return (
        f"this is a bug in sparring: {type(error).__name__}: {error}. Report what --debug shows",
        BUG,
    )


def _failed(error: BaseException, message: str, code: int, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if as_json:
        print_json({"error": message, "kind": type(error).__name__})
    elif message:
        print(f"sparring: {message}", file=sys.stderr)
    return code


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"sparring: warning: {message}", file=sys.stderr)


def print_json(told: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(told, ensure_ascii=False, indent=2))


def say(text: str = "", style: str = "") -> None:
    """Print a line for people: in colour on a terminal, plain elsewhere."""
    if style and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        from rich.console import Console

        Console(highlight=False, soft_wrap=True).print(text, style=style, markup=False)
    else:
        print(text)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table: framed and wrapped on a terminal, columns aligned by spaces elsewhere."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
