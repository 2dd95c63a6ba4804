"""`infer-align models`: the catalogue, read without importing it."""

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from infer_align.cli.console import delivered, say
from infer_align.cli.errors import reported
from infer_align.cli.loader import Sheet, catalogue, entry

WIDTH = 96


@reported
def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Entry to show.", show_default=False),
    ] = None,
) -> None:
    """List the catalogue of declared targets, with their reference numbers.

    With a NAME: what it says of itself, all its numbers, and the command that fits it.
    """
    if name is not None:
        _show(entry(name))
        delivered()
        return
    sheets = catalogue()
    width = max(map(len, sheets))
    for key, sheet in sheets.items():
        say(f"{key.ljust(width)}  {sheet.headline}")
        numbers = ", ".join(f"{k} {_short(v)}" for k, v in sheet.reference.items())
        if numbers:
            say(textwrap.indent(textwrap.fill(numbers, WIDTH - width), " " * (width + 2)))
    say("\ninfer-align models NAME shows one of them.")
    delivered()


def _show(sheet: Sheet) -> None:
    say(f"{sheet.name}: {sheet.doc.strip()}\n\nfile: {sheet.path}")
    for key, value in sheet.reference.items():
        say(f"  {key} = {_long(value)}")
    if sheet.is_numpyro():
        say("\nA NumPyro program: solve or fit it in Python (infer_align.jax, infer_align.exact).")
    else:
        say(f"\nfit it:  infer-align fit {sheet.path}")


def _long(number: Any) -> str:
    """A reference number with its tolerance and where it comes from."""
    if not isinstance(number, Mapping):
        return str(number)
    tolerance, source = number.get("tolerance"), number.get("source")
    within = "" if tolerance is None else f" ± {tolerance:g}"
    return f"{number.get('value')}{within}" + ("" if source is None else f"   ({source})")


def _short(number: Any) -> str:
    value = number.get("value") if isinstance(number, Mapping) else number
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_short(v) for v in value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
