"""The command ``infer-align``: demo, fit, assess, sample, exact, models.

A thin user of the library. Importing it loads Typer only; torch is loaded by the commands that
need it, so that ``--help`` and ``models`` are quick and work without any extra.
"""

import sys
from typing import Annotated, Any

import typer

import infer_align
from infer_align.cli import demo, exact, fitting, models, sampling, using
from infer_align.cli.console import delivered, steady_output
from infer_align.cli.errors import BEGAN, DEBUG, reported

__all__ = ["app"]


class App(typer.Typer):
    """The program: what it prints cannot end it, and an interrupt at any time is a sentence."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the command that the arguments name, and exit with its status."""
        BEGAN.set(False)
        try:
            with steady_output():
                try:
                    super().__call__(*args, **options)
                except SystemExit as end:
                    if not (end.code or BEGAN.get()):
                        _deliver_help()
                    raise
        except KeyboardInterrupt:
            if sys.stderr is not None:
                print("error: interrupted", file=sys.stderr)
            sys.exit(130)


def _deliver_help() -> None:
    """Exit with the status of a lost product if help, or the version, was not printed."""
    try:
        reported(delivered)()
    except typer.Exit as lost:
        sys.exit(lost.exit_code)


app = App(
    name="infer-align",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


def _version(value: bool) -> bool:  # noqa: FBT001
    if value:
        typer.echo(f"infer_align {infer_align.__version__}")
        raise typer.Exit
    return value


@app.callback()
def main(
    *,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="INFER_ALIGN_DEBUG", help="Show tracebacks of errors."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Alignment as inference: declare a target over a language model's outputs, fit a policy to
    it, and measure how close it got.
    """  # noqa: D205
    DEBUG.set(debug)


for command in (demo.demo, fitting.fit, using.assess, sampling.sample, exact.exact, models.models):
    app.command()(command)
