"""Becker et al. 2024, Probabilistic Programming with Programmable Variational Inference.

    python -m paper_repro.becker2024_programmable_vi.run [--smoke] [--json] [--only PART]

Tables with what the paper has beside what comes out, then numbered checks; exit status 1 if one
fails. Parts: cone (the objective values of five bounds), times (gradients against hand-written JAX,
NumPyro and Pyro; reported, not checked), counting (an AIR-like model with discrete latents, by
estimator). --smoke takes tiny sizes and checks only what they can show.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from paper_repro.becker2024_programmable_vi import cone, counting, timing
from paper_repro.checks import Check

EXPECTED = json.loads((Path(__file__).parent / "expected.json").read_text(encoding="utf-8"))
TRAINED = tuple(counting.CHOICES)
REPEATED = ("score", "measure_valued", "IWELBO 2, score")


def least(claim: str, what: str, floor: float, got: float) -> Check:
    """A check that a number is not below a floor; printed is its shortfall."""
    return Check(
        claim, f"{what}: {got:.4g}, short of {floor:.4g} by", 0.0, max(floor - got, 0.0), 0
    )


class Part(NamedTuple):
    """A table, by row, and its checks."""

    rows: dict[str, dict[str, Any]]
    checks: list[Check]


def cone_part(*, smoke: bool) -> Part:
    """1. The objective values of the cone."""
    sizes = {"seeds": 1, "steps": 200, "batch": 8, "samples": 2_000} if smoke else {
        "seeds": 5, "steps": 5_000, "batch": 64, "samples": 100_000}  # fmt: skip
    ceiling = cone.ceiling()
    rows, checks = {}, [Check("1", "log p(z = 5)", EXPECTED["ceiling"], ceiling, 5e-5)]
    for name in ("HVI", "IWHVI m=5") if smoke else cone.CASES:
        done = cone.train(cone.CASES[name], **sizes)
        rows[name] = cone_row(name, done, sizes)
        excess = max(0.0, done.value.max() - ceiling)
        checks.append(Check("1", f"{name} above the ceiling by", 0.0, excess, 0))
    means = {name: row["mean"] for name, row in rows.items()}
    ordered = ("HVI", "IWHVI m=5"), ("IWHVI m=5", "DIWHVI n=5,m=5"), ("ELBO", "IWELBO n=5")
    for low, high in ordered[: 1 if smoke else None]:
        checks.append(least("1", f"{high} less {low}", 0.0, means[high] - means[low]))
    if smoke:
        return Part(rows, checks)
    for name, goal in EXPECTED["within_0.03"].items():
        checks.append(Check("1", f"{name}, mean of 5 seeds", goal, means[name], 0.03))
    elbo, published = rows["ELBO"], EXPECTED["published"]["ELBO"]["paper"]
    checks.append(Check("1", "ELBO, mean of 5 seeds", published, elbo["mean"], 0.03))
    one = cone.train(
        cone.CASES["IWELBO n=5"], **sizes | {"batch": 1, "seeds": 16, "samples": 5_000}
    )
    rows["IWELBO n=5, batch 1"] = cone_row("IWELBO n=5, batch 1", one, sizes | {"samples": 5_000})
    for label, value in EXPECTED["published"]["IWELBO n=5"].items():
        outside = max(one.value.min() - value, value - one.value.max(), 0.0)
        what = f"IWELBO of {label}, {value:.2f}: outside the range of 16 seeds at batch 1 by"
        checks.append(Check("1", what, 0.0, outside, 0))
    return Part(rows, checks)


def cone_row(name: str, done: cone.Trained, sizes: dict[str, int]) -> dict[str, Any]:
    """What the table shows of an objective."""
    published = EXPECTED["published"].get(name, {})
    return {
        "paper": published.get("paper", math.nan), "artifact": published.get("artifact", math.nan),
        "mean": float(done.value.mean()), "lowest": float(done.value.min()),
        "highest": float(done.value.max()),
        "se": float(done.sd.mean() / sizes["samples"] ** 0.5),
        "se_5000": float(done.sd.mean() / 5_000**0.5),
    }  # fmt: skip


def times_part(*, smoke: bool) -> Part:
    """2. Milliseconds for a gradient; what is checked is that all compute the same gradient."""
    batches, rounds = ((16,), 3) if smoke else ((64, 256, 1024), 40)
    names = ["HVI"] if smoke else list(cone.CASES)
    rows, checks = {}, []
    for batch in batches:
        for name in [*names, "VAE ELBO"]:
            make = timing.vae_contenders if name == "VAE ELBO" else partial(
                timing.cone_contenders, name)  # fmt: skip
            contenders = make(batch)
            rows[f"{name}, batch {batch}"] = timing.medians(contenders, rounds)
            if batch == batches[0]:
                for other, z in timing.disagreement(contenders, 30).items():
                    what = f"{name}: mean gradient of {other}, in standard errors from ours"
                    checks.append(Check("2", what, 0.0, z, 5.0))
    if not smoke:
        for batch in (128, 512):
            rows[f"VAE ELBO, batch {batch}"] = timing.medians(timing.vae_contenders(batch), rounds)
    return Part(rows, checks)


def counting_part(*, smoke: bool) -> Part:
    """3. Counting objects: variance, time and training by estimator."""
    if smoke:
        params, measured = counting.initial(jax.random.key(0)), ("enumerate_", "measure_valued")
        sizes = {"batch": 2, "draws": 30, "objects": 1}
    else:
        params, measured = (
            counting.train("measure_valued", steps=500, batch=64)[0].params,
            TRAINED[:6],
        )
        sizes = {"batch": 64, "draws": 200}
    found = counting.gradients(params, measured, **sizes)
    exact = found["enumerate_"]
    rows: dict[str, dict[str, Any]] = {}
    checks = []
    for name, g in found.items():
        rows[name] = {"variance": g.variance, "relative": g.variance / exact.variance,
                      "ms": g.milliseconds}  # fmt: skip
        z = np.abs(g.mean - exact.mean) / np.hypot(g.error, exact.error)
        if name != "enumerate_":
            what = f"{name}: gradient along 5 directions, standard errors from enumerate_"
            checks.append(Check("3", what, 0.0, float(z.max()), 5.0))
    if smoke:
        return Part(rows, checks)
    for name in TRAINED:
        runs = counting.train(name, steps=3_000, batch=64, seeds=3 if name in REPEATED else 1)
        right = [counting.accuracy(run.params) for run in runs]
        rows.setdefault(name, {}).update(
            loss=float(np.mean([run.values[-300:].mean() for run in runs])),
            accuracy=float(np.mean(right)), lowest=min(right), highest=max(right),
            seconds=float(np.mean([run.seconds for run in runs])),
        )  # fmt: skip
    ratio = rows["score"]["variance"] / rows["measure_valued"]["variance"]
    checks.append(least("3", "variance of score over measure_valued", 10.0, ratio))
    for good in ("enumerate_", "measure_valued", "score_loo(4)"):
        gap = rows[good]["accuracy"] - rows["score"]["accuracy"]
        checks.append(least("3", f"count accuracy of {good} less score", 0.2, gap))
    return Part(rows, checks)


PARTS = {"cone": cone_part, "times": times_part, "counting": counting_part}


def show(name: str, part: Part) -> None:
    """The rows as a table; times also as ratios to those by hand."""
    columns = list(dict.fromkeys(key for row in part.rows.values() for key in row))
    print(f"\n{name:<28}" + "".join(f"{column:>13}" for column in columns))
    for label, row in part.rows.items():
        cells = [row.get(column, math.nan) for column in columns]
        texts = ["" if math.isnan(x) else f"{x:.4g}" if abs(x) < 1 else f"{x:.3f}" for x in cells]
        if name == "times":
            texts = [t + (f" ({x / row['by hand']:.2f})" if t else "")
                     for t, x in zip(texts, cells, strict=True)]  # fmt: skip
        print(f"{label:<28}" + "".join(f"{text:>13}" for text in texts))


def report(checks: Iterator[Check]) -> bool:
    """Print the checks; whether all hold."""
    failed, count = 0, 0
    print(f"\n{'claim':<6}{'what':<84}{'expected':>12}{'got':>12}")
    for c in checks:
        failed, count = failed + (not c.passed), count + 1
        mark = "" if c.passed else "  FAILED"
        print(f"{c.claim:<6}{c.what:<84}{c.expected:>12.6g}{c.got:>12.6g}{mark}")
    print(f"{count - failed} of {count} checks hold")
    return failed == 0


def main() -> int:
    """Run the parts, print tables and checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds in all")
    parser.add_argument("--json", action="store_true", help="every number at full precision")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    jax.config.update("jax_enable_x64", False)  # noqa: FBT003 - float32, as in the paper
    parts = {
        name: make(smoke=options.smoke)
        for name, make in PARTS.items()
        if options.only in (None, name)
    }
    checks = [check for part in parts.values() for check in part.checks]
    if options.json:
        rows = {name: part.rows for name, part in parts.items()}
        done = [{**check._asdict(), "passed": check.passed} for check in checks]
        print(json.dumps({**rows, "checks": done}))
        return 0 if all(check.passed for check in checks) else 1
    for name, part in parts.items():
        show(name, part)
    return 0 if report(iter(checks)) else 1


if __name__ == "__main__":
    sys.exit(main())
