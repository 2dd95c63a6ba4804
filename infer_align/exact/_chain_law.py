"""The law of a Markov chain's total reward: tilted FFT of matrix powers, or partial rewards."""

import math
from typing import Any, NamedTuple

import numpy as np

from infer_align.exact._edges import Edges, whole_numbers
from infer_align.exact._engines import MAX_LATTICE
from infer_align.exact._lattice import lattice_law
from infer_align.exact._law import RewardLaw
from infer_align.exact._rewards import ExactRewards, combine

MAX_BITS = 2e11
"""Positions times edges times levels, in the sets of bits that tell which levels are attained."""
MAX_PARTIAL = 20_000_000
"""Pairs of a state and a partial reward that are listed, over all positions."""


class Lattice(NamedTuple):
    """Where the rewards of edges and first states lie on a common lattice."""

    first: np.ndarray
    """Positions of the first states' rewards above their least, shape (S,)."""
    edges: np.ndarray
    """Positions of the edges' rewards above their least, shape (S, S)."""
    least: int
    """Position of the least total that an accepted path has."""
    size: int
    """Number of positions from there to the greatest."""
    lowest: tuple[int, ...]
    """Key of the least total."""
    step: tuple[int, ...]
    """Key of the lattice's step."""


def chain_law(
    first: np.ndarray, edges: np.ndarray, last: np.ndarray, exact: ExactRewards,
    tokens: np.ndarray, length: int,
) -> RewardLaw:  # fmt: skip
    """The law of the total reward, given that the sequence is accepted.

    Parameters
    ----------
    first, last : array, shape (S,)
        Log-weights of the first and of the last state.
    edges : array, shape (S, S)
        Log-weights of the transitions.
    exact : ExactRewards
        Of the S·S edges, then of the S first states.
    tokens : array of int, shape (S,)
        That the states emit.
    length : int
    """
    lattice = _common_lattice(first, edges, last, exact, length)
    model = _as_edges(first, edges, last, exact, tokens, length)
    if lattice is not None and lattice.size <= MAX_LATTICE + 1:
        return _on_lattice(first, edges, last, lattice, exact, model)
    keys, log_prob = model.forward(MAX_PARTIAL)[-1]
    log_total = np.logaddexp.reduce(log_prob + last[:, None], axis=0)
    log_accept = _accepted(np.logaddexp.reduce(log_total))
    units = [unit.value() for unit in exact.units]
    possible = np.flatnonzero(log_total > -math.inf)
    rewards = np.array([_decode(int(key), exact, units, length) for key in keys[possible]])
    order = np.argsort(rewards, kind="stable")
    kept = possible[order]
    size = "no lattice" if lattice is None else f"{lattice.size:,} levels on a lattice"
    return RewardLaw(
        rewards[order], log_total[kept] - log_accept, length, "partial rewards",
        f"{size}, {len(kept):,} different totals", lambda: keys[kept],
        lambda values: model.level_mean(_by_token(values, model))[kept],
        make_edges=lambda: model, make_above=exact.above(lambda: keys[kept]),
    )  # fmt: skip


def _accepted(log_accept: float) -> float:
    if log_accept == -math.inf:
        raise ValueError("the chain accepts no sequence of this length, so it has no law")
    return float(log_accept)


def _by_token(values: Any, model: Edges) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if len(values) < model.tokens:
        raise ValueError(f"{len(values)} values for {model.tokens} tokens; give one a token")
    return values


def _decode(code: int, exact: ExactRewards, units: list[Any], terms: int) -> float:
    """The reward that a code stands for."""
    if len(units) == 1:
        return float(combine((code,), units))
    radix = exact.radix(terms)
    digits = []
    for _ in units:
        digit = (code + radix // 2) % radix - radix // 2
        digits.append(digit)
        code = (code - digit) // radix
    return float(combine(digits, units))


def _as_edges(
    first: np.ndarray, edges: np.ndarray, last: np.ndarray, exact: ExactRewards,
    tokens: np.ndarray, length: int,
) -> Edges:  # fmt: skip
    states = len(first)
    codes = whole_numbers(exact.codes(length), length)
    begin = np.flatnonzero(first > -math.inf)
    source, target = np.nonzero(edges > -math.inf)
    return Edges(
        states, int(tokens.max()) + 1, length,
        (begin, tokens[begin], first[begin], codes[states**2 + begin]),
        (source, target, tokens[target], edges[source, target], codes[source * states + target]),
        last,
    )  # fmt: skip


def _common_lattice(
    first: np.ndarray, edges: np.ndarray, last: np.ndarray, exact: ExactRewards, length: int
) -> Lattice | None:
    states = len(first)
    live = np.flatnonzero(edges.ravel() > -math.inf)
    begin = np.flatnonzero(first > -math.inf)
    units = [unit.value() for unit in exact.units]
    groups = [[exact.keys[i] for i in live], [exact.keys[states**2 + i] for i in begin]]
    least = [min(group, key=lambda key: combine(key, units)) for group in groups]
    above = tuple(
        tuple(a - b for a, b in zip(key, low, strict=True))
        for group, low in zip(groups, least, strict=True)
        for key in group
    )
    found = ExactRewards(above, exact.units).lattice()
    if found is None:
        return None
    x, x0 = np.zeros(states**2, dtype=np.int64), np.zeros(states, dtype=np.int64)
    x[live], x0[begin] = found[0][: len(live)], found[0][len(live) :]
    x = x.reshape(states, states)
    low, high = (
        side * _longest(
            np.where(first > -math.inf, side * x0, -math.inf),
            np.where(edges > -math.inf, side * x, -math.inf),
            np.where(last > -math.inf, 0.0, -math.inf), length,
        )
        for side in (-1, 1)
    )  # fmt: skip
    if not math.isfinite(high):
        _accepted(-math.inf)
    lowest = tuple(
        b + (length - 1) * a + int(low) * step for a, b, step in zip(*least, found[1], strict=True)
    )
    return Lattice(x0, x, int(low), int(high - low) + 1, lowest, found[1])


def _longest(first: np.ndarray, edges: np.ndarray, last: np.ndarray, length: int) -> float:
    """Greatest total of an accepted path, by powers in the (max, +) algebra."""
    vector, n = first, length - 1
    while n:
        if n % 2:
            vector = (vector[:, None] + edges).max(axis=0)
        n //= 2
        if n:
            edges = (edges[:, :, None] + edges[None]).max(axis=1)
    return float((vector + last).max())


def _on_lattice(
    first: np.ndarray, edges: np.ndarray, last: np.ndarray, lattice: Lattice, exact: ExactRewards,
    model: Edges,
) -> RewardLaw:  # fmt: skip
    total = PathSum(first, edges, last, lattice, model.length)
    _accepted(total.log_accept)
    unresolved, full, reach = 0, np.zeros(1), None
    if lattice.size > 1:
        reach = _attainable(first, edges, last, lattice, model.length)
        full, unresolved = lattice_law(total, lattice.size, reach)
    levels = np.flatnonzero(full > -math.inf)
    units = [unit.value() for unit in exact.units]
    step, base = float(combine(lattice.step, units)), float(combine(lattice.lowest, units))
    reason = f"rewards on a lattice of step {step:.6g}, {len(first)} states"
    if lattice.size > 1 and reach is None:
        reason += ", levels below 1e-13 of their neighbours left out"
    if unresolved:
        reason += f", {unresolved:,} levels known to 1e-16 of their neighbours'"

    def keys() -> np.ndarray:
        low, unit = (exact.code(key, model.length) for key in (lattice.lowest, lattice.step))
        bounds = whole_numbers([low, unit * lattice.size], 2)
        return bounds[0] + levels.astype(bounds.dtype) * unit

    def level_mean(values: Any) -> np.ndarray:
        known = model.forward(MAX_PARTIAL)[-1][0]
        return model.level_mean(_by_token(values, model))[np.searchsorted(known, keys())]

    return RewardLaw(
        base + step * levels, full[levels], model.length, "tilted FFT", reason, keys, level_mean,
        step if lattice.size > 1 else None, make_edges=lambda: model,
        make_above=lambda level: step * (levels - levels[level]),
    )  # fmt: skip


class PathSum:
    """The reward of a path of a chain as a sum on a lattice; a `Sum` of `lattice_law`.

    Parameters
    ----------
    first, last : array, shape (S,)
        Log-weights.
    edges : array, shape (S, S)
        Log-weights.
    lattice : Lattice
    length : int
    """

    def __init__(
        self, first: np.ndarray, edges: np.ndarray, last: np.ndarray, lattice: Lattice, length: int
    ):
        self.first, self.edges, self.last = first, edges, np.exp(last)
        self.x0, self.x = lattice.first.astype(float), lattice.edges.astype(float)
        self.steps, self.least = length - 1, lattice.least
        self.log_accept = self._jet(0.0)[0]

    def _weights(self, theta: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Tilted weights of the first state and of the edges, scaled, and the log of the scale."""
        first, edges = self.first + theta * self.x0, self.edges + theta * self.x
        top, most = first.max(), edges.max()
        return np.exp(first - top), np.exp(edges - most), top + self.steps * most

    def _jet(self, theta: float) -> tuple[float, float, float]:
        """log E[accepted·exp(θ s)] and its first two derivatives, through matrix powers."""
        first, edges, log_scale = self._weights(theta)
        power = (np.eye(len(first)), np.zeros_like(edges), np.zeros_like(edges))
        base = (edges, edges * self.x, edges * self.x**2)
        log_power = log_base = 0.0
        n = self.steps
        while n:
            if n % 2:
                power, log_power = _scaled(_product(power, base), log_power + log_base)
            n //= 2
            if n:
                base, log_base = _scaled(_product(base, base), 2 * log_base)
        starts = (first, first * self.x0, first * self.x0**2)
        value, slope, bend = (
            sum(
                math.comb(order, i) * float(starts[i] @ power[order - i] @ self.last)
                for i in range(order + 1)
            )
            for order in range(3)
        )
        if value == 0:
            return -math.inf, 0.0, 0.0
        mean = slope / value
        return log_scale + log_power + math.log(value), mean, bend / value - mean**2

    def tilt(self, theta: float) -> tuple[float, float, float]:
        """Of the sum above its least value, given that it is accepted, as in `Sum`."""
        log_mgf, mean, variance = self._jet(theta)
        kl = theta * mean - (log_mgf - self.log_accept)
        return kl, mean - self.least, max(variance, 0.0)

    def characteristic(self, theta: float, omega: np.ndarray, centre: int) -> np.ndarray:
        """Of the sum, as in `Sum`; loses about length·1e-16."""
        first, edges, log_scale = self._weights(theta)
        log_mgf = self._jet(theta)[0]
        out = np.empty(len(omega), dtype=complex)
        chunk = max(1, 2_000_000 // edges.size)
        for i in range(0, len(omega), chunk):
            part = omega[i : i + chunk]
            base = edges * np.exp(1j * part[:, None, None] * self.x)
            vector = (first * np.exp(1j * part[:, None] * self.x0))[:, None, :]
            log_vector = log_base = 0.0
            n = self.steps
            while n:
                if n % 2:
                    vector = vector @ base
                    log_vector += log_base
                n //= 2
                if n:
                    base = base @ base
                    size = np.abs(base).max()
                    base, log_base = base / size, 2 * log_base + math.log(size)
            value = (vector @ self.last)[:, 0]
            phase = np.exp(-1j * part * (centre + self.least))
            out[i : i + chunk] = value * phase * math.exp(log_scale + log_vector - log_mgf)
        return out


Jet = tuple[np.ndarray, np.ndarray, np.ndarray]


def _product(a: Jet, b: Jet) -> Jet:
    """Product of matrices with their first two derivatives."""
    return a[0] @ b[0], a[1] @ b[0] + a[0] @ b[1], a[2] @ b[0] + 2 * a[1] @ b[1] + a[0] @ b[2]


def _scaled(jet: Jet, log_scale: float) -> tuple[Jet, float]:
    size = float(jet[0].max()) or 1.0
    return (jet[0] / size, jet[1] / size, jet[2] / size), log_scale + math.log(size)


def _attainable(
    first: np.ndarray, edges: np.ndarray, last: np.ndarray, lattice: Lattice, length: int
) -> np.ndarray | None:
    """Which totals some accepted path has, by sets of bits; None where that would take too long."""
    source, target = np.nonzero(edges > -math.inf)
    if length * len(source) * lattice.size > MAX_BITS:
        return None
    moves = [
        (int(i), int(j), int(lattice.edges[i, j])) for i, j in zip(source, target, strict=True)
    ]
    bits = [1 << int(x) if w > -math.inf else 0 for w, x in zip(first, lattice.first, strict=True)]
    for _ in range(length - 1):
        following = [0] * len(bits)
        for i, j, x in moves:
            following[j] |= bits[i] << x
        bits = following
    total = 0
    for reached, weight in zip(bits, last, strict=True):
        total |= reached if weight > -math.inf else 0
    total >>= lattice.least
    packed = np.frombuffer(total.to_bytes(lattice.size // 8 + 1, "little"), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little")[: lattice.size].astype(bool)
