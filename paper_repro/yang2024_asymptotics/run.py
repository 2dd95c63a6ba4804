"""Yang et al. 2024, Asymptotics of Language Model Alignment: each claim of the abstract, checked.

    python -m paper_repro.yang2024_asymptotics.run [--smoke]
        every claim with what is expected and what comes out; exit status 1 if one fails
    python -m paper_repro.yang2024_asymptotics.run --p 0.5,0.3,0.2 --r=0,1,2 --m 1,10 --delta 0.2
        the numbers behind them for any memoryless model; --json for all, at full precision

arXiv 2404.01730. The paper's own figures and parameters were not available: the models below are
ours, and no figure of the paper is claimed.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infer_align import divergences
from infer_align.exact import Chain, RewardLaw, best_of_n, log_rewards, reports, reward_law
from infer_align.exact import asymptotics as limits
from infer_align.exact.selection import log_kl_to_best_of_n
from infer_align.exact.tilts import beta_for_kl, closeness, frontier
from paper_repro.checks import Check

P, Q = ["0.5", "0.3", "0.2"], ["0.2", "0.3", "0.5"]
"""Model T1: prior p, reward r = log q. It has no lattice."""
LATTICE = ["0", "1", "2"]
"""Model T2: the same prior, rewards on a lattice."""
MARKOV = ([0.5, 0.25, 0.25], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], [0, 1, 2])
"""Model M1: initial law, transitions, reward of each state."""
EXPECTED = json.loads((Path(__file__).parent / "expected.json").read_text(encoding="utf-8"))


def model_t1(length: int) -> RewardLaw:
    """T1 at a length."""
    return reward_law([float(p) for p in P], log_rewards(Q), length)


def model_t2(length: int) -> RewardLaw:
    """T2 at a length."""
    return reward_law([float(p) for p in P], LATTICE, length)


def closed_form() -> Iterator[Check]:
    """1. The tilt is the closed form of the best policy in a KL ball."""
    letter, kl = model_t1(1), 0.2
    point = frontier(letter, kl)
    tilt = letter.tilt(point.beta)
    yield Check("1", "temperature at KL 0.2", EXPECTED["beta"], point.beta, 1e-12)
    yield Check("1", "reward R(0.2)", EXPECTED["reward"], point.reward, 1e-12)
    # No policy in the ball has a larger reward: its dual bound is attained.
    bound = point.beta * (kl + float(letter.log_z(point.beta)))
    yield Check("1", "Lagrange dual − R(0.2)", 0.0, bound - point.reward, 1e-12)
    rng, best = np.random.default_rng(0), -math.inf
    for _ in range(20_000):
        other = np.log(rng.dirichlet(np.ones(3)))
        if letter.kl_to_prior(other) <= kl:
            best = max(best, float(letter.expected_reward(other)))
    yield Check("1", "random policies above R(0.2), of 20,000", 0.0, max(best - point.reward, 0), 0)
    yield Check("1", "KL of the tilt", kl, float(letter.kl_to_prior(tilt)), 1e-12)


def comparable_is_close() -> Iterator[Check]:
    """2. Whatever has a comparable trade-off is close to the tilt in KL: an identity."""
    law, rng, worst = model_t1(10), np.random.default_rng(1), 0.0
    for _ in range(100):
        policy = np.log(rng.dirichlet(np.exp(law.tilt(1.0)) * 50 + 0.1))
        gap = closeness(law, policy, 1.3)
        worst = max(worst, abs(gap.kl_to_tilt - gap.kl_excess - gap.reward_shortfall))
    yield Check("2", "KL(π‖φ) less [KL − Δ] + [R − E r]/β, worst of 100", 0.0, worst, 1e-10)


def memoryless() -> Iterator[Check]:
    """3. For a memoryless model and a linear reward the optimum is memoryless, β free of m."""
    letter, law = model_t1(1), model_t1(10)
    yield Check(
        "3",
        "β of m = 10 less β of m = 1",
        0.0,
        beta_for_kl(law, 2.0) - beta_for_kl(letter, 0.2),
        1e-11,
    )
    reward = float(law.expected_reward(law.tilt(beta_for_kl(letter, 0.2))))
    yield Check("3", "reward per token at m = 10", EXPECTED["reward"], reward / 10, 1e-12)


def cumulants_are_renyi() -> Iterator[Check]:
    """4. Scaled cumulants of the reward grow at a Rényi cross entropy of the tilt to q."""
    letter, law, beta = model_t1(1), model_t1(20), EXPECTED["beta"]
    log_q = np.log([float(q) for q in Q])
    log_tilt = np.log(letter.token_marginals(letter.tilt(beta), 3))
    for t in (-0.5, 1.0, 3.0):
        cross = limits.renyi_cross_entropy(log_tilt, log_q, 1 + t)
        growth = float(limits.scaled_cumulant(law, t, beta=beta)) / law.length
        yield Check(
            "4", f"log E exp({t:g} r)/m + {t:g}·H_{1 + t:g}(φ‖q)", 0.0, growth + t * cross, 1e-12
        )
    cross = limits.renyi_cross_entropy(np.log([0.5, 0.3, 0.2]), log_q, 2.0)
    yield Check("4", "H_2(p‖q)", EXPECTED["renyi_2"], cross, 1e-12)


def large_deviations(*, smoke: bool) -> Iterator[Check]:
    """5. The reward of the optimum obeys a large-deviation principle with this rate function."""
    letter, m = model_t1(1), 200
    reward, beta = EXPECTED["reward"], EXPECTED["beta"]
    yield Check("5", "I₀(R(δ))", 0.2, limits.rate(letter, reward), 1e-12)
    law = model_t1(m)
    exact = -float(law.log_above[np.searchsorted(law.rewards, m * reward) - 1]) / m
    yield Check("5", "−log P(r >= mR)/m, m = 200", EXPECTED["tail_exponent"], exact, 1e-7)
    sharp = -limits.bahadur_rao(letter, reward, m) / m
    yield Check("5", "the same by Bahadur–Rao", exact, sharp, 1e-3)
    for m, tolerance in ((50, 0.05), (200, 0.02)) if smoke else ((200, 0.02), (1000, 0.005)):
        law, x = model_t1(m), -0.9
        above = np.logaddexp.reduce(law.tilt(beta)[law.rewards >= m * x])
        rate = limits.rate(letter, x, beta=beta)
        yield Check(
            "5", f"−log φ(r >= mx)/m, x = −0.9, m = {m}", rate, -float(above) / m, tolerance
        )


def best_of_n_is_equivalent(*, smoke: bool) -> Iterator[Check]:
    """6. Best-of-n, n = exp(mδ), has the same reward per token in the limit, and the same KL."""
    for row in EXPECTED["best_of_n"]:
        law, delta = model_t1(row["m"]), row["delta"]
        policy = best_of_n(law, log_n=delta * row["m"])
        tilt = law.tilt(beta_for_kl(model_t1(1), delta))
        got = {
            "reward": law.expected_reward(policy), "kl_prior": law.kl_to_prior(policy),
            "kl_tilt": law.divergence(divergences.reverse_kl, policy, tilt),
        }  # fmt: skip
        for key, value in got.items():
            what = f"{key} per token, m = {row['m']}, δ = {delta}"
            yield Check("6", what, row[key], float(value) / row["m"], 1e-11)
    for m in (100, 200) if smoke else (250, 500, 1000):
        law, kl = model_t1(m), 0.2
        shortfall = m * EXPECTED["reward"] - float(
            law.expected_reward(best_of_n(law, log_n=m * kl))
        )
        least = EXPECTED["beta"] * (1 - math.exp(-m * kl))
        yield Check("6", f"m R − E r below (1 − 1/n)β, m = {m}", 0.0, min(shortfall - least, 0), 0)


def sharper(*, smoke: bool) -> Iterator[Check]:
    """7. What the abstract does not say: equivalence is per token, and in one direction."""
    lengths = (50, 200) if smoke else (200, 1000)
    for m in lengths:
        law, letter = model_t1(m), model_t1(1)
        policy, tilt = best_of_n(law, log_n=0.5 * m), law.tilt(beta_for_kl(letter, 0.5))
        total = float(law.divergence(divergences.reverse_kl, policy, tilt))
        limit = limits.best_of_n_limit(letter, 0.5, m)
        what = f"total KL(π_n‖φ) less ½ log(2πmΛ″/β²) − 1 − γ, m = {m}"
        yield Check("7", what, 0.0, total - limit.kl_to_tilt, 4 / math.sqrt(m))
        lattice = model_t2(m)
        total = float(closeness(lattice, best_of_n(lattice, log_n=0.5 * m), 0.5 * m).kl_to_tilt)
        limit = limits.best_of_n_limit(model_t2(1), 0.5, m)
        what = f"the same on a lattice, by a discrete Gumbel, m = {m}"
        yield Check("7", what, 0.0, total - limit.kl_to_tilt, 10 / m)
    for row in EXPECTED["total_variation"]:
        law = model_t1(row["m"])
        tilt, policy = law.tilt(EXPECTED["beta"]), best_of_n(law, log_n=0.2 * row["m"])
        tv = float(law.divergence(divergences.total_variation, policy, tilt))
        yield Check("7", f"TV(π_n, φ), m = {row['m']}: it tends to 1", row["tv"], tv, 5e-4)
    exponent = limits.log_kl_exponent(model_t2(1), 0.2)
    yield Check(
        "7", "lim log KL(φ‖π_n)/m: the other KL explodes", EXPECTED["exponent"], exponent, 1e-5
    )
    for m in (1000,) if smoke else (1000, 4000, 16000):
        law = model_t2(m)
        tilt = law.tilt(beta_for_kl(model_t2(1), 0.2))
        short = m * exponent - log_kl_to_best_of_n(law, tilt, log_n=0.2 * m) - 0.5 * math.log(m)
        yield Check("7", f"m·limit − log KL(φ‖π_n) − ½ log m, m = {m}", 0.32, short, 0.02)
    yield from different_deviations()


def different_deviations() -> Iterator[Check]:
    """The two laws differ in their large deviations, in value and in kind."""
    letter, delta, m = model_t1(1), 0.2, 200
    above, below = EXPECTED["reward"] + 0.1, EXPECTED["reward"] - 0.1
    gap = limits.rate_of_best_of_n(letter, above, delta) - limits.rate(
        letter, above, beta=EXPECTED["beta"]
    )
    apart = 0.1 / EXPECTED["beta"]
    yield Check("7", "rate at R + 0.1, best-of-n's less the tilt's", apart, gap, 1e-12)
    law = model_t1(m)
    low = law.rewards <= m * below
    tilt, bon = (
        float(np.logaddexp.reduce(policy[low])) / m
        for policy in (law.tilt(EXPECTED["beta"]), best_of_n(law, log_n=m * delta))
    )
    rate = limits.rate(letter, below, beta=EXPECTED["beta"])
    yield Check("7", "−log P(r/m <= R − 0.1)/m of the tilt, m = 200", rate, -tilt, 0.02)
    yield Check("7", "the same of best-of-n: infinite, over 1000", 0.0, max(1000 + bon, 0.0), 0)


def markov(*, smoke: bool) -> Iterator[Check]:
    """8. The same for a Markov source (Balasundaram and Rameshwar, arXiv 2610.01828)."""
    for row in EXPECTED["markov"][: 2 if smoke else None]:
        law = Chain(*MARKOV, row["m"]).reward_law()
        kl = 0.3 * row["m"]
        gap = float(closeness(law, best_of_n(law, log_n=kl), kl).kl_to_tilt) / row["m"]
        yield Check("8", f"KL(π_n‖φ)/m, δ = 0.3, m = {row['m']}", row["kl_tilt"], gap, 5e-5)


def checks(*, smoke: bool) -> Iterator[Check]:
    """All of them, in order."""
    always: tuple[Callable[[], Iterator[Check]], ...] = (
        closed_form, comparable_is_close, memoryless, cumulants_are_renyi,
    )  # fmt: skip
    for check in always:
        yield from check()
    for check in (large_deviations, best_of_n_is_equivalent, sharper, markov):
        yield from check(smoke=smoke)


def print_model(report: dict[str, Any]) -> None:
    """The best-of-n rows as a table."""
    keys = ("beta", "reward_tilt", "reward_bon", "kl_bon_prior", "kl_bon_tilt", "tv", "win_rate")
    print(f"{'m':>7} {'delta':>6} " + " ".join(f"{key:>13}" for key in keys))
    for row in report["bon"]:
        print(f"{row['m']:>7} {row['delta']:>6g} " + " ".join(f"{row[key]:>13.8f}" for key in keys))
    print("--json has all sections: " + ", ".join(sorted(report)))


def strict_json(report: Any) -> str:
    """JSON in which what is not finite is a text, as `infer-align exact --json` prints it."""
    texts = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
    return json.dumps(json.loads(json.dumps(report), parse_constant=texts.__getitem__))


def main() -> int:
    """Run the checks, or print the numbers of a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="shorter sequences, seconds in all")
    parser.add_argument("--p", help="letter probabilities, with commas")
    parser.add_argument("--r", help="letter rewards, as written: --r=-1.5,0,2")
    parser.add_argument("--m", help="numbers of tokens")
    parser.add_argument("--delta", help="KL budgets in nats per token")
    parser.add_argument("--json", action="store_true", help="every number at full precision")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("p", "r", "m", "delta")}
    if any(given.values()):
        if missing := [f"--{name}" for name, value in given.items() if not value]:
            parser.error(f"a model needs {', '.join(missing)} as well")
        p, r, m, delta = (value.split(",") for value in given.values())
        try:
            report = reports.memoryless(p, r, m, delta)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(strict_json(report)) if options.json else print_model(report)
        return 0
    done = list(checks(smoke=options.smoke))
    if options.json:
        print(json.dumps([{**check._asdict(), "passed": check.passed} for check in done]))
    else:
        print(f"{'claim':<6}{'what':<66}{'expected':>16}{'got':>16}")
        for c in done:
            mark = "" if c.passed else "  FAILED"
            print(f"{c.claim:<6}{c.what:<66}{c.expected:>16.9g}{c.got:>16.9g}{mark}")
        failed = sum(not c.passed for c in done)
        print(f"{len(done) - failed} of {len(done)} checks hold")
    return 0 if all(check.passed for check in done) else 1


if __name__ == "__main__":
    sys.exit(main())
