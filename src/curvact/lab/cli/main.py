"""The `curvact` command: its groups, its errors and its exit codes.

Exit codes: 0 done, 1 a run failed, 2 bad input (one line on standard error), 130 stopped by Ctrl-C,
143 stopped by SIGTERM.

This module and the command groups import typer and nothing heavier. A command imports what it needs
when it runs, so that `curvact --help` is quick.
"""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Annotated, Any

import typer

from curvact._version import __version__
from curvact.errors import CurvactError, first_line, for_want_of_memory, printable, short
from curvact.lab.cli import STOPPED
from curvact.lab.cli.activation import activation
from curvact.lab.cli.analyze import analyze_app
from curvact.lab.cli.corruptions import corruptions
from curvact.lab.cli.data import data_app
from curvact.lab.cli.evaluate import evaluate, leaderboard
from curvact.lab.cli.examples import overview, with_examples
from curvact.lab.cli.explore import explore
from curvact.lab.cli.options import with_code
from curvact.lab.cli.runs import runs_app
from curvact.lab.cli.search import search
from curvact.lab.cli.start import doctor, init, schema
from curvact.lab.cli.steer import steer
from curvact.lab.cli.sweep import sweep_app
from curvact.lab.cli.train import train
from curvact.lab.cli.transfer import transfer_app
from curvact.lab.cli.zoo import zoo
from curvact.workers import at_start

LONGEST_LINE = 2000
"""A longer message is cut."""

OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ELOOP,
)
"""Errors of files that are no bug of ours: one line each."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command("activation")(activation)
app.add_typer(data_app, name="data")
app.command("train")(train)
app.add_typer(sweep_app, name="sweep")
app.command("search")(search)
app.command("evaluate")(evaluate)
app.command("leaderboard")(leaderboard)
app.command("corruptions")(corruptions)
app.command("steer")(steer)
app.add_typer(analyze_app, name="analyze")
app.add_typer(transfer_app, name="transfer")


def _all_take_code(group: typer.Typer) -> None:
    for known in group.registered_commands:
        if known.callback is not None:
            known.callback = with_code(known.callback)
    for sub in group.registered_groups:
        if sub.typer_instance is not None:
            _all_take_code(sub.typer_instance)


_all_take_code(app)
app.command("explore")(explore)
app.command("init")(init)
app.command("schema")(schema)
app.command("doctor")(doctor)
app.command("zoo")(zoo)
app.add_typer(runs_app, name="runs")  # after it: listing runs runs no code, and loads no torch


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"curvact {__version__}")
        raise typer.Exit


with_examples(app)


@app.callback(epilog=overview())
def _curvact(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Robust activations, chosen by their curvature."""


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Our own warnings as one line; others as Python shows them."""
    if category.__module__.startswith("curvact"):
        print(f"curvact: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


def main() -> None:
    """Run the command line. `curvact.__main__` does, after it has taken charge of Ctrl-C."""
    with warnings.catch_warnings():
        _show_warnings()
        at_start(_show_warnings)
        _main()


def _show_warnings() -> None:
    warnings.showwarning = _show_warning


def _main() -> None:
    try:
        app()
    except CurvactError as error:
        _end(str(error), 2)
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        _end(f"{error.strerror}: {error.filename or 'while writing'}", 2)
    except KeyboardInterrupt:
        _end(STOPPED, 130)
    except (MemoryError, RuntimeError) as error:
        if not for_want_of_memory(error):
            raise
        _end(f"out of memory: {first_line(error)}; what is finished is kept", 1)
    except SystemExit as end:
        if end.code == 130:  # typer turns Ctrl-C into this
            _end(STOPPED, 130)
        raise


def _end(message: str, code: int) -> None:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    line = short(printable(" ".join(message.split())), LONGEST_LINE)
    print(f"curvact: {line}", file=sys.stderr)


def _show_usage_error(error: Any, file: object = None) -> None:
    """What is wrong with the command's words, in one line like all bad input; typer shows four."""
    help_text = f"; see `{error.ctx.command_path} --help`" if error.ctx is not None else ""
    _say(f"{error.format_message().rstrip('.')}{help_text}")


_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Typer's own class of such errors, which it does not export."""
_USAGE_ERROR.show = _show_usage_error
