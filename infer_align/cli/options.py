"""Options that several commands share; their names are those of the Python arguments."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from infer_align.cli import loader
from infer_align.cli import settings as s
from infer_align.cli.errors import Stop


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names)


MOST, LAST_SEED, MOST_THREADS = 10**9, 2**32 - 1, 1024
"""Largest count, seed and number of threads that an option takes."""


def opt(
    text: str, *flags: str, panel: str | None = None, low: int | None = None, most: int = MOST
) -> Any:
    """An option with its help; a count with the least and the largest value it takes."""
    if low is None:
        return typer.Option(*flags, help=text, rich_help_panel=panel)
    return typer.Option(*flags, help=text, rich_help_panel=panel, min=low, max=most, metavar="N")


def real(
    text: str, *, panel: str | None = None, above: float = -math.inf, low: float = -math.inf,
    high: float = math.inf, infinite: bool = False,
) -> Any:  # fmt: skip
    """An option that takes a number, never NaN: > above, >= low, <= high; finite or not."""

    def check(value: float | None) -> float | None:
        if value is None or (value > above and low <= value <= high
                             and (infinite or math.isfinite(value))):  # fmt: skip
            return value
        kind = "a number" if infinite else "a finite number"
        bounds = (("above", above), ("of at least", low), ("of at most", high))
        words = " and ".join(f"{word} {x:g}" for word, x in bounds if math.isfinite(x))
        raise typer.BadParameter(f"{value} is not {kind} {words}".rstrip())

    return typer.Option(help=text, rich_help_panel=panel, callback=check)


def expanded(given: Path) -> Path:
    """As `loader.expanded`, with Typer's own error."""
    try:
        return loader.expanded(given)
    except Stop as error:
        raise typer.BadParameter(str(error)) from None


def path(text: str, *, panel: str | None = None) -> Any:
    """An option that takes a file or a folder."""
    check: Callable[[Path | None], Path | None] = lambda p: None if p is None else expanded(p)
    return typer.Option(help=text, rich_help_panel=panel, callback=check)


PROBLEM, FIT, RUN = "What is fitted", "How it is fitted", "Where, and how it is recorded"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET.py[:name]", help="File with `def target(lm)`.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    opt("Folder, .gguf file or hub id. Default: the file's own `model()`.", panel=PROBLEM),
]
Prompts = Annotated[
    Path | None,
    path(
        'A .txt file, one prompt a line, or .jsonl with a "prompt" column; the program\'s other '
        "arguments are columns. Default: the file's PROMPTS.",
        panel=PROBLEM,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    opt("Longest continuation. Default: the file's MAX_NEW_TOKENS.", panel=PROBLEM, low=1),
]
Device = Annotated[str, opt("cpu, cuda or cuda:0.", panel=PROBLEM)]
Dtype = Annotated[
    str | None, opt("float32 (default), float64 or bfloat16, of --model.", panel=PROBLEM)
]
Lora = Annotated[int | None, opt("Rank of a low-rank adapter. [default: 16]", panel=PROBLEM, low=1)]
Full = Annotated[bool, opt("Train all weights instead of an adapter.", "--full", panel=PROBLEM)]

EstimatorName = Annotated[str, opt(_names(s.ESTIMATORS) + ".", "--estimator", panel=FIT)]
Divergence = Annotated[
    str | None,
    opt(
        _names(s.DIVERGENCES) + ", alpha:NUMBER, generalized_jensen_shannon:NUMBER. "
        "Default of f_dpg: jensen_shannon.",
        panel=FIT,
    ),
]
Baseline = Annotated[str | None, opt(_names(s.BASELINES) + ". Default: leave_one_out.", panel=FIT)]
LogZ = Annotated[
    str | None,
    opt(_names(s.LOG_Z) + ", or the number, if known. Default of f_dpg: batch.", panel=FIT),
]
Truncate = Annotated[float | None, real("Largest importance ratio kept.", panel=FIT, above=0.0)]
Clip = Annotated[float | None, real("Largest pseudo-reward kept.", panel=FIT, above=0.0)]
N = Annotated[int, opt("Outcomes per prompt and step.", "--n", "-n", panel=FIT, low=1)]
Steps = Annotated[int, opt("Optimiser steps in all.", panel=FIT, low=1)]
PromptsPerStep = Annotated[
    int | None, opt("Prompts drawn at each step. Default: all of them.", panel=FIT, low=1)
]
LearningRate = Annotated[float, real("Of AdamW, at the start; positive.", panel=FIT, above=0.0)]
Schedule = Annotated[str, opt("constant, or linear: down to 10 % at the last step.", panel=FIT)]
MaxGradNorm = Annotated[
    float,
    real(
        "The gradient's norm is clipped here; inf for no clipping.",
        panel=FIT,
        above=0.0,
        infinite=True,
    ),
]
TokenBudget = Annotated[
    int | None, opt("Largest number of tokens of one pass; changes no gradient.", panel=FIT, low=1)
]
Reuse = Annotated[int, opt("Optimiser steps on each batch.", panel=FIT, low=1)]

Seed = Annotated[int, opt("Of every generator.", panel=RUN, low=0, most=LAST_SEED)]
RunDir = Annotated[Path | None, path("Run folder. Default: a new one in runs/.", panel=RUN)]
Overwrite = Annotated[bool, opt("Replace the run in --run-dir.", "--overwrite", panel=RUN)]
Resume = Annotated[
    bool, opt("Go on with the run in --run-dir, with its settings.", "--resume", panel=RUN)
]
TrustTarget = Annotated[
    bool,
    opt(
        "Run the target file that the run names, also if it is not the one it was made with.",
        "--trust-target",
        panel=RUN,
    ),
]
CheckpointEvery = Annotated[int, opt("Steps between checkpoints.", panel=RUN, low=1)]
NAssess = Annotated[
    int,
    opt("Fresh outcomes per prompt to assess on, before and after; 0: don't.", panel=RUN, low=0),
]
AssessPrompts = Annotated[int, opt("Prompts to assess on, the first ones.", panel=RUN, low=1)]
Threads = Annotated[
    int | None,
    opt(
        "Threads of torch. Default: OMP_NUM_THREADS, else 2, which wait without spinning.",
        panel=RUN,
        low=1,
        most=MOST_THREADS,
    ),
]
