"""`infer-align models`: the catalogue, read without importing it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from infer_align.cli.console import say
from infer_align.cli.errors import reported
from infer_align.cli.loader import Sheet, catalogue, entry


@reported
def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Entry to show in full.", show_default=False),
    ] = None,
) -> None:
    """List the catalogue of declared targets, with their reference numbers.

    With a NAME: what it says of itself, all its numbers, and the command that fits it.
    """
    if name is not None:
        _show(entry(name))
        return
    sheets = catalogue()
    width = max(map(len, sheets))
    for key, sheet in sheets.items():
        say(f"{key.ljust(width)}  {sheet.headline}")
        numbers = ", ".join(f"{k} {_short(v)}" for k, v in flat(sheet.reference))
        if numbers:
            say(f"{' ' * width}  {numbers}")
    say("\ninfer-align models NAME shows one of them.")


def _show(sheet: Sheet) -> None:
    say(f"{sheet.name}: {sheet.doc.strip()}\n\nfile: {sheet.path}")
    for key, value in flat(sheet.reference):
        say(f"  {key} = {value}")
    if sheet.is_numpyro():
        say("\nA NumPyro program: solve or fit it in Python (infer_align.jax, infer_align.exact).")
    else:
        say(f"\nfit it:  infer-align fit {sheet.path}")


def flat(reference: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those of inner dicts with a dot."""
    for key, value in reference.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_short(v) for v in value) + ")"
    return str(value)
