"""Exact numbers of best-of-n on memoryless sequences, from exact integers and mpmath.

    python scripts/best_of_n_reference.py --p 0.5,0.3,0.2 --r=0,1,2 --m 1,10 --delta 0.05,0.2
    python scripts/best_of_n_reference.py --check    recompute what is fast in the golden file
    python scripts/best_of_n_reference.py --write    replace the golden file (many minutes)

A sequence has m iid letters with probabilities p and rewards r, both the exact rationals that
their decimal texts denote; its reward is the sum. Best-of-N has N = exp(m delta), a real number,
and the tilt phi = t^m, t_j ~ p_j exp(r_j / beta), has KL(t‖p) = delta per letter. Where delta is
out of the tilt's reach, beta = 0 and phi is p given that all letters are the best. At delta = 0,
beta = inf and phi = p (also if every letter is as good as the best).

A level is a value of the reward, exactly; W_l / D^m is its prior mass, W_l an integer, and
F_l the mass up to it. Best-of-N puts B_l = F_l^N - F_{l-1}^N on it. Every count is an exact
integer (also at m = 100000), and mpmath enters where the logarithms start. Numbers smaller than
1e-400 in size, zero to a double, are written 0.0; log_kl_tilt_bon is the natural logarithm of
KL(phi‖best-of-N), which can be far too large to write.

Nothing of infer_align, numpy or scipy is imported: this is the second opinion.
"""

import argparse
import datetime
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from mpmath import inf, ldexp, mp, mpf

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "best_of_n.json"
DIGITS = 30
"""Significant digits that are printed."""
WORKING = 90
"""Digits that are worked with; --write repeats everything with twice as many."""
AGREE = mpf("1e-40")
"""Relative difference that two working precisions, or two engines, may have."""
MOST_TYPES = 60_000
FAR = 100_000
"""exp(-x) is left out of sums beyond this x: at most 1e-43000 of mass, even in 1e6 levels."""
TINY = "1e-400"

Row = dict[str, object]
Count = tuple[int, int, list[int]]


class Letters(NamedTuple):
    """An alphabet: probabilities weights / denominator, rewards keys / scale, all integers."""

    weights: list[int]
    denominator: int
    keys: list[int]
    scale: int


class Level(NamedTuple):
    """A value of the reward with its prior mass P, F up to it, and who is in its sequences.

    a = -log F_l and e = log(F_l / F_{l-1}); shares[j] is the fraction of letter j.
    """

    reward: mpf
    mass: mpf
    below: mpf
    log_mass: mpf
    a: mpf
    e: mpf
    shares: list[mpf]
    best: bool


class Tilt(NamedTuple):
    """Inverse temperature b, log Σ p_j exp(b r_j), and the tilted letters."""

    b: mpf
    log_z: mpf
    probs: list[mpf]


def parse(p: list[str], r: list[str]) -> Letters:
    """The alphabet that the decimal texts denote."""
    probs, rewards = [Fraction(x) for x in p], [Fraction(x) for x in r]
    if len(probs) != len(rewards) or sum(probs) != 1 or min(probs) <= 0:
        raise SystemExit("p must be positive and sum to exactly 1, and r as long as p")
    denominator = math.lcm(*(x.denominator for x in probs))
    scale = math.lcm(*(x.denominator for x in rewards))
    return Letters(
        [int(x * denominator) for x in probs], denominator, [int(x * scale) for x in rewards], scale
    )


def ratio(x: Fraction) -> mpf:
    """A rational number at the working precision."""
    return mpf(x.numerator) / x.denominator


def big(n: int) -> mpf:
    """An integer of any length at the working precision (mpf(n) is slow with trailing zeros)."""
    shift = max(0, n.bit_length() - mp.prec - 64)
    return ldexp(mpf(n >> shift), shift)


# ---- Counts: the levels in ascending order, as (key, W_l, [V_lj]) with E[n_j | l] = m V_lj / W_l


def counts_by_type(letters: Letters, m: int) -> Iterator[Count]:
    """Engine 1: every type (n_1, ..., n_k), multinomial(n) Π weights^n, merged by key."""
    k = len(letters.keys)
    powers = [[w**n for n in range(m + 1)] for w in letters.weights]
    table: dict[int, list[int]] = {}

    def visit(j: int, left: int, weight: int, key: int, n: tuple[int, ...]) -> None:
        if j == k - 1:
            weight *= powers[j][left]
            row = table.setdefault(key + left * letters.keys[j], [0] * (k + 1))
            for i, count in enumerate((1, *n, left)):
                row[i] += count * weight
            return
        for c in range(left + 1):
            share = weight * math.comb(left, c) * powers[j][c]
            visit(j + 1, left - c, share, key + c * letters.keys[j], (*n, c))

    visit(0, m, 1, 0, ())
    for key in sorted(table):
        weight, *sums = table[key]
        yield key, weight, [s // m for s in sums]  # E[n_j; l] = m p_j P_{m-1}(l - r_j): exact


def power(q: dict[int, int], m: int) -> Iterator[int]:
    """The coefficients of (Σ_i q_i x^i)^m, q_0 > 0, by the recurrence from f' q = m q' f."""
    top = max(q)
    recent = deque([q[0] ** m], maxlen=max(top, 1))
    yield recent[0]
    for n in range(1, top * m + 1):
        total = sum(q[i] * ((m + 1) * i - n) * recent[-i] for i in q if 0 < i <= n)
        recent.append(total // (n * q[0]))  # exact
        yield recent[-1]


def lattice(letters: Letters) -> tuple[list[int], int]:
    """Steps s_j ≥ 0 and the spacing g: key_j = min key + g s_j."""
    low = min(letters.keys)
    spacing = reduce(math.gcd, (key - low for key in letters.keys)) or 1
    return [(key - low) // spacing for key in letters.keys], spacing


def counts_by_power(letters: Letters, m: int) -> Iterator[Count]:
    """Engine 2: the m-th power of the letters' polynomial, one coefficient after the other."""
    steps, spacing = lattice(letters)
    q: dict[int, int] = {}
    for step, weight in zip(steps, letters.weights, strict=True):
        q[step] = q.get(step, 0) + weight
    top, low = max(q), m * min(letters.keys)
    shorter = power(q, m - 1)
    recent = deque([0] * (top + 1), maxlen=top + 1)  # W_{m-1} at n - top, ..., n
    for n, weight in enumerate(power(q, m)):
        recent.append(next(shorter, 0))
        if weight:
            pairs = zip(steps, letters.weights, strict=True)
            yield low + n * spacing, weight, [w * recent[-1 - s] for s, w in pairs]


def engines(letters: Letters, m: int) -> list:
    """The engines that can do this, the preferred one first."""
    found = []
    if math.comb(m + len(letters.keys) - 1, m) <= MOST_TYPES:
        found.append(counts_by_type)
    if max(lattice(letters)[0]) * m <= 500_000:
        found.append(counts_by_power)
    if not found:
        raise SystemExit(f"m = {m} is too large for these rewards")
    return found


def levels(letters: Letters, m: int, counts: Iterator[Count]) -> Iterator[Level]:
    """The levels from the lowest to the best, each with its logarithms.

    Both tails are exact integers, so neither F near 1 nor F near 0 costs digits.
    """
    whole = letters.denominator**m
    size, top, below = big(whole), m * max(letters.keys), 0
    for key, weight, sums in counts:
        upto = below + weight
        above = whole - upto
        w, c, before = big(weight), big(upto), big(below)
        if above > upto:
            a = -mp.log(c / size)
        else:
            a = -mp.log1p(-big(above) / size)
        if not below:
            e = inf
        elif before * 2 < c:
            e = mp.log(c / before)
        else:
            e = -mp.log1p(-w / c)
        mass = w / size
        shares = [big(s) / w for s in sums]
        reward = mpf(key) / letters.scale
        yield Level(reward, mass, before / size, mp.log(mass), a, e, shares, key == top)
        below = upto
    if below != whole:
        raise ArithmeticError("the weights of the levels do not sum to D^m")


# ---- The tilt


def tilted(letters: Letters, b: mpf) -> tuple[Tilt, mpf, mpf]:
    """The tilt at b, its KL to the prior per letter, and the derivative of that."""
    best = mpf(max(letters.keys)) / letters.scale
    gaps = [mpf(key) / letters.scale - best for key in letters.keys]
    terms = [w * mp.exp(b * g) for w, g in zip(letters.weights, gaps, strict=True)]
    z = mp.fsum(terms)
    probs = [term / z for term in terms]
    log_z = mp.log(z / letters.denominator)
    mean = mp.fdot(probs, gaps)
    variance = mp.fsum(t * (g - mean) ** 2 for t, g in zip(probs, gaps, strict=True))
    return Tilt(b, log_z + b * best, probs), b * mean - log_z, b * variance


def solve_tilt(letters: Letters, delta: Fraction) -> Tilt:
    """The tilt at KL delta per letter; b = 0 at delta = 0, inf where none has that KL."""
    if delta == 0:
        return Tilt(mpf(0), mpf(0), [mpf(w) / letters.denominator for w in letters.weights])
    kept = [
        w * (k == max(letters.keys)) for w, k in zip(letters.weights, letters.keys, strict=True)
    ]
    target = ratio(delta)
    if target >= -mp.log(mpf(sum(kept)) / letters.denominator):
        return Tilt(inf, inf, [mpf(w) / sum(kept) for w in kept])
    low = high = mpf(1)
    while tilted(letters, high)[1] < target:
        high *= 2
    while tilted(letters, low)[1] > target:
        low /= 2
    for _ in range(60):  # KL grows with b: halve the bracket, then let Newton finish
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(letters, middle)[1] < target else (low, middle)
    b = (low + high) / 2
    for _ in range(mp.dps):
        _, kl, slope = tilted(letters, b)
        step = (kl - target) / slope
        b -= step
        if abs(step) < b * mpf(10) ** (5 - mp.dps):
            return tilted(letters, b)[0]
    raise ArithmeticError("Newton's method did not converge")


# ---- The sums over levels


def log1mexp(d: mpf) -> mpf:
    """log(1 - exp(-d)), d > 0; beyond FAR the result, within exp(-FAR) of 0, is 0."""
    if d > FAR:
        return mpf(0)
    return mp.log1p(-mp.exp(-d)) if d > 0.7 else mp.log(-mp.expm1(-d))


class Budget:
    """The row of one delta: feed it the levels in ascending order, then ask for the result."""

    def __init__(self, letters: Letters, m: int, delta: Fraction) -> None:
        self.letters, self.m, self.delta = letters, m, delta
        self.tilt = solve_tilt(letters, delta)
        self.n = mp.exp(m * ratio(delta))
        self.levels = 0
        self.bon = self.phi = self.reward = self.kl_prior = self.kl_tilt = mpf(0)
        self.tv = self.win = self.kl_back = mpf(0)
        self.log_kl_back = None
        self.shares = [mpf(0)] * len(letters.keys)

    def log_phi(self, level: Level) -> mpf:
        """log of the tilt's mass of a level."""
        if self.tilt.b == inf:
            return mpf(0) if level.best else -inf
        return level.log_mass + self.tilt.b * level.reward - self.m * self.tilt.log_z

    def add(self, level: Level) -> None:
        """Add a level to every sum.

        B below exp(-FAR) is left out. What that drops from a sum over B, a polynomial in x times
        exp(-x) per level, is far below TINY; in KL(phi‖best-of-N), where -log B = x weighs, all
        levels take part.
        """
        self.levels += 1
        x, d = self.n * level.a, self.n * level.e
        log_b, log_phi = log1mexp(d) - x, self.log_phi(level)
        b = mp.exp(log_b) if x < FAR else mpf(0)
        phi = mp.exp(log_phi) if log_phi > -inf else mpf(0)
        self.bon += b
        self.phi += phi
        self.tv += max(b - phi, 0)  # half the sum of |B - phi|, without cancellation at the top
        if not phi:
            self.kl_tilt = inf  # B > 0 on every level, however small
        if b:
            self.reward += b * level.reward
            self.win += b * (level.below + level.mass / 2)
            self.kl_prior += b * (log_b - level.log_mass)
            self.kl_tilt += b * (log_b - log_phi)
            self.shares = [s + b * g for s, g in zip(self.shares, level.shares, strict=True)]
        if phi:
            self.kl_back += phi * (log_phi - log_b)
        if level.best and self.tilt.b == inf and d < inf:
            # phi is all on the best level, x = 0: log KL = log(-log(1 - exp(-d))), -d if far.
            self.log_kl_back = -d if d > FAR else mp.log(-log1mexp(d))

    def check(self) -> None:
        """Identities that every row must satisfy at the working precision."""
        r = [mpf(key) / self.letters.scale for key in self.letters.keys]
        near = mpf(10) ** (30 - mp.dps)
        pairs = [
            (self.bon, 1),
            (self.phi, 1),
            (mp.fsum(self.shares), 1),
            (mp.fdot(self.shares, r), self.reward / self.m),
        ]
        if self.tilt.b < inf:  # KL(pi‖phi) = KL(pi‖p) - b E_pi[r] + m log z
            linear = self.m * self.tilt.log_z - self.tilt.b * self.reward
            pairs.append((self.kl_tilt, self.kl_prior + linear))
        for left, right in pairs:
            if abs(left - right) > near * max(1, abs(right)):
                raise ArithmeticError(f"{left} is not {right} at delta = {self.delta}")

    def result(self) -> dict[str, mpf | list[mpf]]:
        """The values of the row."""
        self.check()
        m, b = self.m, self.tilt.b
        r = [mpf(key) / self.letters.scale for key in self.letters.keys]
        row = {
            "beta": inf if b == 0 else 1 / b,
            "reward_tilt": mp.fdot(self.tilt.probs, r),
            "reward_bon": self.reward / m,
            "kl_bon_prior": self.kl_prior / m,
            "kl_bon_tilt": self.kl_tilt / m,
            "tv": self.tv,
            "win_rate": self.win,
        }
        log_kl = self.log_kl_back
        if self.levels == 1 or self.delta == 0:  # best-of-N is phi
            row |= {"kl_bon_prior": mpf(0), "kl_bon_tilt": mpf(0), "tv": mpf(0)}
            log_kl = -inf
        row = {name: value if abs(value) > mpf(TINY) else mpf(0) for name, value in row.items()}
        row["log_kl_tilt_bon"] = mp.log(self.kl_back) if log_kl is None else log_kl
        row["expected_token_share"] = [s if s > mpf(TINY) else mpf(0) for s in self.shares]
        return row


def compute(
    letters: Letters, m: int, deltas: list[str], digits: int = WORKING, engine: int = 0
) -> list[dict]:
    """The rows of one m as mpmath numbers, one per delta."""
    with mp.workdps(digits):
        budgets = [Budget(letters, m, Fraction(delta)) for delta in deltas]
        counts = engines(letters, m)[engine](letters, m)
        for level in levels(letters, m, counts):
            for budget in budgets:
                budget.add(level)
        return [budget.result() for budget in budgets]


def text(x: mpf) -> str:
    """A number as a decimal text."""
    if abs(x) == inf:
        return "inf" if x > 0 else "-inf"
    return mp.nstr(x, DIGITS)


def rows(p: list[str], r: list[str], ms: list[int], deltas: list[str]) -> Iterator[Row]:
    """The rows of an alphabet as texts."""
    for m in ms:
        for delta, row in zip(deltas, compute(parse(p, r), m, deltas), strict=True):
            yield as_text(m, delta, row)


def as_text(m: int, delta: str, row: dict) -> Row:
    """A row as the golden file has it."""
    values = {k: [text(x) for x in v] if isinstance(v, list) else text(v) for k, v in row.items()}
    return {"m": m, "delta": delta, **values}


def difference(one: list[dict], other: list[dict]) -> mpf:
    """The largest relative difference between two lists of rows."""
    worst = mpf(0)
    for row, again in zip(one, other, strict=True):
        flat = [x for v in row.values() for x in (v if isinstance(v, list) else [v])]
        twin = [x for v in again.values() for x in (v if isinstance(v, list) else [v])]
        for x, y in zip(flat, twin, strict=True):
            if x != y:
                worst = max(worst, abs(x - y) / max(abs(x), abs(y)))
    return worst


# ---- The golden file

ABC = "0.5,0.3,0.2"
F2 = ",".join(repr(math.log(n / 28)) for n in (2, 3, 5, 7, 11))
T1 = "-1.6094379124341003,-1.2039728043259361,-0.6931471805599453"
# name: p, r, m, delta
CASES = {
    "T1": (ABC, T1, "1,10,50,200", "0,0.05,0.2,0.5,1.7"),
    "T2": (ABC, "0,1,2", "1,10,50,200,1000,5000", "0.05,0.2,0.5,1.7"),
    "F1": ("0.4,0.25,0.15,0.12,0.08", "0,1,1,2,3", "1,10,40,200", "0.05,0.2,0.5,2.6"),
    "F2": ("0.3,0.25,0.2,0.15,0.1", F2, "1,10,30", "0.05,0.2,0.5,2.4"),
    "decimal_ties": (ABC, "0.1,0.2,0.3", "1,2,3,20", "0.1,0.4,1.2"),
    "near_tie": (ABC, "0.1,0.2,0.30000000000000004", "1,2,3,20", "0.1,0.4,1.2"),
    "two_letters": ("0.9,0.1", "1,-2.5", "1,7,100", "0.02,0.08,0.2"),
    "six_letters": (
        "0.3,0.25,0.2,0.1,0.1,0.05",
        "0.5,-1,2.25,0,2.25,-0.125",
        "1,4,12",
        "0.1,0.7,3.5",
    ),
    "one_letter": ("1", "3", "1,5", "0,0.3"),
    "all_tied": ("0.6,0.4", "2,2", "3", "0,0.3"),
    "gaps": ("0.5,0.499,0.001", "0,1,1000", "1,5,60", "0.05,0.5,3"),
    "T2_long": (ABC, "0,1,2", "100000", "0.2,0.5"),
}
SLOW = ("T2_long",)


def case(name: str) -> tuple[list[str], list[str], list[int], list[str]]:
    """The inputs of a case: p, r, m, delta."""
    p, r, m, delta = (part.split(",") for part in CASES[name])
    return p, r, [int(x) for x in m], delta


def checked(name: str) -> tuple[list[Row], mpf]:
    """The rows of a case, and how far higher precision and the other engine are from them."""
    p, r, ms, deltas = case(name)
    letters, worst, found = parse(p, r), mpf(0), []
    for m in ms:
        start = time.perf_counter()
        row = compute(letters, m, deltas)
        worst = max(worst, difference(row, compute(letters, m, deltas, 2 * WORKING)))
        both = len(engines(letters, m)) > 1
        if both:
            worst = max(worst, difference(row, compute(letters, m, deltas, engine=1)))
        seconds = time.perf_counter() - start
        print(f"{name} m={m}: {mp.nstr(worst, 3)} {'two engines' * both} {seconds:.1f} s")
        found += [as_text(m, delta, one) for delta, one in zip(deltas, row, strict=True)]
    if worst > AGREE:
        raise SystemExit(f"{name}: not reproduced, relative difference {worst}")
    return found, worst


def write() -> int:
    """Replace the golden file."""
    cases, worst = [], mpf(0)
    for name in CASES:
        found, far = checked(name)
        worst = max(worst, far)
        p, r, _, _ = case(name)
        cases.append({"name": name, "p": p, "r": r, "rows": found, "slow": name in SLOW})
    provenance = {
        "command": "python scripts/best_of_n_reference.py --write",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "digits": DIGITS,
        "working_digits": WORKING,
        "worst_relative_difference": mp.nstr(worst, 3),
        "compared_with": f"{2 * WORKING} working digits; the other engine where two can do it",
        "smaller_is_written_0": TINY,
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = json.dumps({"provenance": provenance, "cases": cases}, indent=1)
    GOLDEN.write_text(lines + "\n", encoding="utf-8")
    return 0


def check() -> int:
    """Compare the golden file with the cases here and its fast rows with fresh ones."""
    cases, failed = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"], 0
    for entry in cases:
        start, name = time.perf_counter(), entry["name"]
        p, r, ms, deltas = case(name)
        asked = [(m, delta) for m in ms for delta in deltas]
        good = [entry["p"], entry["r"]] == [p, r]
        good &= asked == [(row["m"], row["delta"]) for row in entry["rows"]]
        if not entry["slow"]:
            good &= list(rows(p, r, ms, deltas)) == entry["rows"]
        note = "inputs only" if entry["slow"] else f"{time.perf_counter() - start:.1f} s"
        print(f"{name}: {'ok' if good else 'DIFFERS'} ({note})")
        failed += not good
    if [entry["name"] for entry in cases] != list(CASES):
        print("the golden file has other cases than this script")
        failed += 1
    return int(failed > 0)


def main() -> int:
    """Write, check, or print the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", help="probabilities, separated by commas")
    parser.add_argument("--r", help="rewards; write --r=-1,2 if the first is negative")
    parser.add_argument("--m", default="1", help="lengths")
    parser.add_argument("--delta", default="0.2", help="KL budgets per letter")
    parser.add_argument("--write", action="store_true", help="replace the golden file")
    parser.add_argument("--check", action="store_true", help="recompute its fast part")
    args = parser.parse_args()
    if args.write or args.check:
        return write() if args.write else check()
    if not args.p or not args.r:
        parser.error("--p and --r, or --write, or --check")
    p, r, m, delta = (part.split(",") for part in (args.p, args.r, args.m, args.delta))
    print(json.dumps(list(rows(p, r, [int(x) for x in m], delta)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
