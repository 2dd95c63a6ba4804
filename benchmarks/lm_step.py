"""Time of one fit step on a language model, split into sample, score, reward and update.

    python benchmarks/lm_step.py [--model tiny|smollm2] [--n N] [--lora R] [--steps S] [--reuse K]

Prints medians over steps after a warm-up, tokens per second, and how many rows each step put
through the networks. Run by `make bench` at its default size.
"""

import argparse
import importlib.util
import os
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from infer_align import divergences, estimators
from infer_align.torch import CausalLM, fit

ENTRIES = {"tiny": ("tiny_gpt2", 128, 20), "smollm2": ("smollm2_sentiment", 32, 4)}
"""Catalogue entry, outcomes and timed steps of each model."""
WARM_UP = 2
PHASES = ("sample", "score", "reward", "update")


def entry(name: str) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"catalogue_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(model: ModuleType, lm: CausalLM, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Metrics of each timed step, and what it added to the counters of policy and prior."""
    policy = lm.trainable(lora=options.lora)
    rows = []
    steps = fit(
        policy, model.target(lm), estimators.f_dpg(divergences.jensen_shannon),
        prompts=model.PROMPTS, n=options.n, steps=options.reuse * (WARM_UP + options.steps),
        reuse=options.reuse,
    )  # fmt: skip
    for step in steps:
        counts = {f"policy {k}": v for k, v in policy.counts.items()}
        counts |= {f"prior {k}": v for k, v in lm.counts.items()}
        policy.counts.clear()
        lm.counts.clear()
        if step.index >= options.reuse * WARM_UP:
            fresh = step.index % options.reuse == 0
            rows.append(step.metrics | counts | {"fresh": fresh})
    return rows


def report(rows: list[dict[str, Any]], title: str) -> None:
    print(f"\n{title}: median of {len(rows)} steps")
    total = statistics.median(
        sum(row.get(f"seconds_{phase}", 0.0) for phase in PHASES) for row in rows
    )
    for phase in PHASES:
        seconds = statistics.median(row.get(f"seconds_{phase}", 0.0) for row in rows)
        print(f"  {phase:<28} {1e3 * seconds:9.1f} ms  {seconds / total:6.1%}")
    tokens = statistics.median(row["tokens"] for row in rows)
    print(f"  {'step':<28} {1e3 * total:9.1f} ms  {tokens / total:6.0f} tokens/s")
    names = sorted({k for row in rows for k in row if k.startswith(("policy ", "prior "))})
    for name in names:
        count = statistics.median(row.get(name, 0) for row in rows)
        if count:
            print(f"  {name.replace('_', ' '):<28} {count:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=ENTRIES, default="tiny")
    parser.add_argument("--n", type=int, help="outcomes a step")
    parser.add_argument("--lora", type=int, help="rank of an adapter; default all weights")
    parser.add_argument("--steps", type=int, help="fresh batches that are timed")
    parser.add_argument("--reuse", type=int, default=1, help="optimiser steps on each batch")
    options = parser.parse_args()
    name, n, steps = ENTRIES[options.model]
    options.n, options.steps = options.n or n, options.steps or steps
    model = entry(name)
    lm = model.model()
    what = "all weights" if options.lora is None else f"LoRA r = {options.lora}"
    print(
        f"{name}, {what}, n = {options.n}, up to {lm.max_new_tokens} new tokens, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    rows = measure(model, lm, options)
    report([row for row in rows if row["fresh"]], "on-policy step")
    if options.reuse > 1:
        report([row for row in rows if not row["fresh"]], "step on a reused batch")


if __name__ == "__main__":
    main()
