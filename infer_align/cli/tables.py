"""Assessments and verdicts in the terminal."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from infer_align.cli.console import console, say
from infer_align.cli.escapes import printable

if TYPE_CHECKING:
    from infer_align.cli.evaluation import Row, Sample, Verdict

WIDTH = 96


def print_rows(rows: "Sequence[Row]", *, before: bool) -> None:
    """The before/after table, or the one column of a single assessment."""
    heads = ["", "before", "after", "after − before, 95%"] if before else ["", "value, 95%"]
    lines = [[r.label, r.before, r.after, r.change] if before else [r.label, r.after] for r in rows]
    print_table(heads, lines)


def print_table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """A plain table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(str(cell))) for cell in line))
    console().print(table)


def print_notes(notes: Sequence[str]) -> None:
    """Advice, wrapped."""
    for note in notes:
        say(textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def print_samples(when: str, samples: "Sequence[Sample]") -> None:
    """A few continuations, one a line."""
    say(f"\n{when}:")
    for sample in samples:
        value = "" if sample.reward is None else f"{sample.reward:+.2f}  "
        text = " ".join(f"{sample.prompt}{sample.completion}".split())
        say(f"  {value}{text[: WIDTH - 10]}")


def print_verdict(verdict: "Verdict", *, exam: bool) -> None:
    """The reasons, and the verdict in a word."""
    say()
    for good, reason in verdict.reasons:
        say(f"  {'✓' if good else '✗'} {reason}")
    word, rest = verdict.words(exam=exam)
    typer.secho(printable(f"{word}: {rest}"), fg="green" if verdict.passed else "red", bold=True)
