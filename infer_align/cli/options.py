"""Options that several commands share; their names are those of the Python arguments."""

from pathlib import Path
from typing import Annotated, Any

import typer

from infer_align.cli import settings as s


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def opt(text: str, *flags: str, panel: str | None = None, low: int | None = None) -> Any:
    """An option with its help, and the least value it takes."""
    metavar = None if low is None else "N"
    return typer.Option(*flags, help=text, rich_help_panel=panel, min=low, metavar=metavar)


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
    opt(
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
Truncate = Annotated[float | None, opt("Largest importance ratio kept.", panel=FIT)]
Clip = Annotated[float | None, opt("Largest pseudo-reward kept.", panel=FIT)]
N = Annotated[int, opt("Outcomes per prompt and step.", "--n", "-n", panel=FIT, low=1)]
Steps = Annotated[int, opt("Optimiser steps in all.", panel=FIT, low=1)]
PromptsPerStep = Annotated[
    int | None, opt("Prompts drawn at each step. Default: all of them.", panel=FIT, low=1)
]
LearningRate = Annotated[float, opt("Of AdamW, at the start.", panel=FIT)]
Schedule = Annotated[str, opt("constant, or linear: down to 10 % at the last step.", panel=FIT)]
MaxGradNorm = Annotated[
    float, opt("The gradient's norm is clipped here; inf for no clipping.", panel=FIT)
]
TokenBudget = Annotated[
    int | None, opt("Largest number of tokens of one pass; changes no gradient.", panel=FIT, low=1)
]
Reuse = Annotated[int, opt("Optimiser steps on each batch.", panel=FIT, low=1)]

Seed = Annotated[int, opt("Of every generator.", panel=RUN, low=0)]
RunDir = Annotated[Path | None, opt("Run folder. Default: a new one in runs/.", panel=RUN)]
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
    ),
]
