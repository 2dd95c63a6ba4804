"""Time of exact reward laws with best-of-n, beside naive enumeration and the size it reaches.

    python benchmarks/exact.py [--repeats N] [--json]

Each row is the law of the reward, best-of-n at n = exp(0.2 m), its expected reward and its KL to
the prior: median over repeats in one process, on one thread, rows interleaved. "naive" lists every
sequence with NumPy and merges equal rewards; it triples with every token. Run by `make bench`.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from infer_align.exact import Chain, RewardLaw, best_of_n, log_rewards, reward_law

P, LOG_Q = [0.5, 0.3, 0.2], [-1.6094379124341003, -1.2039728043259361, -0.6931471805599453]
CHAIN = ([0.5, 0.25, 0.25], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], [0, 1, 2])
DELTA = 0.2


def summary(law: RewardLaw, length: int) -> tuple[float, float]:
    """Expected reward and KL to the prior of best-of-n."""
    policy = best_of_n(law, log_n=DELTA * length)
    return float(law.expected_reward(policy)), float(law.kl_to_prior(policy))


def naive(rewards: list[float], length: int) -> tuple[float, float]:
    """The same by listing all sequences."""
    tokens = np.indices((len(P),) * length, dtype=np.int8).reshape(length, -1)
    log_p = np.log(P)[tokens].sum(0)
    reward = np.array(rewards)[tokens].sum(0).round(9)
    levels, index = np.unique(reward, return_inverse=True)
    mass = np.bincount(index, weights=np.exp(log_p))
    n, cdf = math.exp(DELTA * length), np.minimum(np.cumsum(mass), 1.0)
    policy = np.diff(cdf**n, prepend=0.0)
    kept = policy > 0
    kl = float((policy[kept] * np.log(policy[kept] / mass[kept])).sum())
    return float(policy @ levels), kl


ROWS: dict[str, tuple[float | None, Callable[[], tuple[float, float]]]] = {
    "3 letters, any rewards, m = 1000 (types)":
        (0.1, lambda: summary(reward_law(P, LOG_Q, 1000), 1000)),
    "3 letters, any rewards, m = 200 (types)":
        (None, lambda: summary(reward_law(P, LOG_Q, 200), 200)),
    "3 letters, log q of rationals, m = 200 (types)":
        (None, lambda: summary(reward_law(P, log_rewards([0.2, 0.3, 0.5]), 200), 200)),
    "integer rewards 0, 1, 2, m = 1000 (FFT)":
        (None, lambda: summary(reward_law(P, [0, 1, 2], 1000), 1000)),
    "integer rewards 0, 1, 2, m = 100 000 (FFT)":
        (0.1, lambda: summary(reward_law(P, [0, 1, 2], 100_000), 100_000)),
    "integer rewards 0, 1, 2, m = 1 000 000 (FFT)":
        (None, lambda: summary(reward_law(P, [0, 1, 2], 1_000_000), 1_000_000)),
    "Markov chain of 3 states, m = 1000 (FFT of matrices)":
        (0.05, lambda: summary(Chain(*CHAIN, 1000).reward_law(), 1000)),
    "naive, 3 letters, m = 10: 59 049 sequences": (None, lambda: naive(LOG_Q, 10)),
    "naive, 3 letters, m = 13: 1.6 million sequences": (None, lambda: naive(LOG_Q, 13)),
}  # fmt: skip


def main() -> None:
    """Print the table, or JSON rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    exact = summary(reward_law(P, LOG_Q, 10), 10)
    assert np.allclose(exact, naive(LOG_Q, 10), rtol=1e-9), (exact, naive(LOG_Q, 10))
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for repeat in range(options.repeats + 1):
        for name, (_, job) in ROWS.items():  # interleaved: drift meets every row alike
            start = time.perf_counter()
            job()
            if repeat:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    rows = [
        {"name": name, "median_s": statistics.median(times[name]), "bar_s": bar}
        for name, (bar, _) in ROWS.items()
    ]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'law and best-of-n':<54}{'median':>11}{'bar':>10}")
    for row in rows:
        bar = "" if row["bar_s"] is None else f"{1e3 * row['bar_s']:.0f} ms"
        print(f"{row['name']:<54}{1e3 * row['median_s']:>8.1f} ms{bar:>10}")


if __name__ == "__main__":
    main()
