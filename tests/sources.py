"""A proposal and a target as tables: the `Source` that samplers are tested on, in NumPy alone."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infer_align.samplers import Drawn

INF = math.inf


def logsumexp(x: np.ndarray) -> np.ndarray:
    """Along axis 0."""
    top = x.max(axis=0)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis=0)) + top


def log(x: Any) -> np.ndarray:
    """Logarithm, silent at 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(x, dtype=float))


def sequences(vocabulary: int, length: int, *, eos: Sequence[int] = (), pad: int = 0) -> np.ndarray:
    """Every sequence once, (N, length); after its first EOS it holds ``pad``."""
    rows = np.array(list(itertools.product(range(vocabulary), repeat=length)))
    ended = np.isin(rows, eos).cumsum(-1) - np.isin(rows, eos) > 0
    return np.unique(np.where(ended, pad, rows), axis=0)


class TableSource:
    """Outcomes with their log q and log P, (N, *contexts); what is not listed has neither.

    Parameters
    ----------
    outcomes : int array, shape (N,) or (N, T)
    log_q, log_p : arrays, shape (N, *contexts)
        q is normalised here, P is not.
    eos, pad, vocabulary
        Of token sequences, for `tokens`. ``vocabulary`` None: no token sequences.
    """

    def __init__(
        self,
        outcomes: np.ndarray,
        log_q: np.ndarray,
        log_p: np.ndarray,
        *,
        seed: int = 0,
        name: str = "table",
        vocabulary: int | None = None,
        eos: Sequence[int] = (),
        pad: int = 0,
    ) -> None:
        self.outcomes = np.asarray(outcomes)
        log_q, log_p = np.asarray(log_q, dtype=float), np.asarray(log_p, dtype=float)
        shape = np.broadcast_shapes(log_q.shape[1:], log_p.shape[1:])
        self.log_q, self.log_p = (
            np.broadcast_to(x.reshape(len(x), *(1,) * (len(shape) + 1 - x.ndim), *x.shape[1:]),
                            (len(x), *shape)).astype(float)
            for x in (log_q, log_p)
        )  # fmt: skip
        self.log_q = self.log_q - logsumexp(self.log_q)
        self.shape, self.name = shape, name
        self.log_bound: Any = None
        self.rng = np.random.default_rng(seed)
        self.vocabulary, self.eos, self.pad = vocabulary, tuple(eos), pad
        self.drawn = self.scored = 0
        self._base = int(max(self.outcomes.max(), pad)) + 2
        codes = self._codes(self.outcomes)
        self._order = np.argsort(codes)
        self._sorted = codes[self._order]
        assert len(np.unique(codes)) == len(codes), "an outcome is listed twice"

    # -- the protocol -------------------------------------------------------------------------

    def draw(self, n: int) -> Drawn:
        """n fresh outcomes per context, by inversion."""
        self.drawn += n
        flat = self.log_q.reshape(len(self.outcomes), -1)
        u = self.rng.random((n, flat.shape[1]))
        index = np.empty(u.shape, dtype=int)
        for c in range(flat.shape[1]):
            cdf = np.exp(flat[:, c]).cumsum()
            # Scaled to the last sum, so that no u falls behind an outcome of probability 0.
            index[:, c] = np.searchsorted(cdf, u[:, c] * cdf[-1], side="right")
        index = index.reshape(n, *self.shape)
        return Drawn(self.outcomes[index], self._at(self.log_q, index), self._at(self.log_p, index))

    def log_target(self, outcomes: Any) -> np.ndarray:
        """log P of (n, *contexts, ...)."""
        self.scored += len(outcomes)
        return self._at(self.log_p, self.index(outcomes))

    def log_proposal(self, outcomes: Any) -> np.ndarray:
        """log q of (n, *contexts, ...)."""
        return self._at(self.log_q, self.index(outcomes))

    def log_target_se(self, outcomes: Any) -> np.ndarray | None:
        """Of a table that is known."""
        return None

    def tokens(self) -> "TableTokens":
        """The proposal token by token, whatever law the table holds."""
        if self.vocabulary is None:
            raise ValueError(f"the outcomes of {self.name!r} are not token sequences")
        return TableTokens(self)

    # -- the answers --------------------------------------------------------------------------

    @property
    def log_z(self) -> np.ndarray:
        """Exact log Z, (*contexts)."""
        return logsumexp(self.log_p)

    @property
    def p(self) -> np.ndarray:
        """The normalised target, (N, *contexts)."""
        return np.exp(self.log_p - self.log_z)

    @property
    def q(self) -> np.ndarray:
        """The proposal, (N, *contexts)."""
        return np.exp(self.log_q)

    def index(self, outcomes: Any) -> np.ndarray:
        """Row of each outcome in the table, (n, *contexts); -1 if it is not listed."""
        codes = self._codes(np.asarray(outcomes))
        at = np.minimum(np.searchsorted(self._sorted, codes), len(self._sorted) - 1)
        return np.where(self._sorted[at] == codes, self._order[at], -1)

    def mass(self, sample: Any, context: tuple[int, ...] = ()) -> np.ndarray:
        """Self-normalised weight that a `WeightedSample` puts on each listed outcome, (N,)."""
        here = (slice(None), *context)
        index, weight = self.index(sample.outcomes)[here], sample.probabilities[here]
        assert np.all(index[weight > 0] >= 0)
        return np.bincount(index[weight > 0], weight[weight > 0], minlength=len(self.outcomes))

    def _at(self, table: np.ndarray, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        flat = table.reshape(len(table), -1)
        picked = flat[index.reshape(len(index), -1), np.arange(flat.shape[1])].reshape(index.shape)
        return np.where(index >= 0, picked, -INF)

    def _codes(self, outcomes: np.ndarray) -> np.ndarray:
        """One integer an outcome; -1 for tokens out of range."""
        x = np.asarray(outcomes)
        if self.outcomes.ndim == 1:
            return np.where((x >= 0) & (x < self._base), x, -1)
        powers = self._base ** np.arange(self.outcomes.shape[1])[::-1]
        fits = ((x >= 0) & (x < self._base)).all(-1)
        return np.where(fits, (x * powers).sum(-1), -1)


class TableTokens:
    """`TokenStream` of a table: conditionals are ratios of sums over what begins alike."""

    def __init__(self, source: TableSource) -> None:
        assert source.vocabulary is not None
        self.length = source.outcomes.shape[1]
        self.vocabulary_size, self.eos, self.pad = source.vocabulary, source.eos, source.pad
        log_q = source.log_q.reshape(len(source.outcomes), -1)
        self.contexts = log_q.shape[1]
        end = np.isin(source.outcomes, self.eos)
        alive = end.cumsum(-1) - end == 0
        code = np.zeros(len(source.outcomes), dtype=int)
        self._mass = [np.ones((1, self.contexts))]
        for t in range(self.length):
            code = np.where(alive[:, t], code * self.vocabulary_size + source.outcomes[:, t], -1)
            mass = np.zeros((self.vocabulary_size ** (t + 1), self.contexts))
            np.add.at(mass, code[code >= 0], np.exp(log_q[code >= 0]))
            self._mass.append(mass)
        self.steps = 0

    def start(self, n: int) -> np.ndarray:
        """(n, C, V), the law of the first token."""
        self._code = np.zeros((n, self.contexts), dtype=int)
        self._alive = np.ones((n, self.contexts), dtype=bool)
        self._t = 0
        return self._log_probs()

    def advance(self, tokens: Any, ancestors: np.ndarray | None = None) -> np.ndarray:
        """(n, C, V), the law of the token after ``tokens``."""
        tokens = np.asarray(tokens)
        if ancestors is not None:
            self._code = np.take_along_axis(self._code, ancestors, axis=0)
            self._alive = np.take_along_axis(self._alive, ancestors, axis=0)
        size = self.vocabulary_size
        code = self._code * size + np.clip(tokens, 0, size - 1)
        self._code = np.where(self._alive, code, 0)
        self._alive = self._alive & ~np.isin(tokens, self.eos)
        self._t += 1
        return self._log_probs()

    def _log_probs(self) -> np.ndarray:
        self.steps += 1
        size, context = self.vocabulary_size, np.arange(self.contexts)
        if self._t >= self.length:
            return np.full((*self._code.shape, size), -math.log(size))
        code = np.where(self._alive, self._code, 0)
        next_ = code[..., None] * size + np.arange(size)
        mass = self._mass[self._t + 1][next_, context[:, None]]
        total = mass.sum(-1, keepdims=True)
        known = self._alive[..., None] & (total > 0)
        return np.where(known, log(mass / np.where(total > 0, total, 1.0)), -math.log(size))


class ExactTwist:
    """Look-ahead functions log E_q[P/q | prefix] of a table, by summing over what begins alike."""

    def __init__(self, source: TableSource) -> None:
        assert source.vocabulary is not None
        y, self._size = source.outcomes, source.vocabulary
        log_p, log_q = (x.reshape(len(y), -1) for x in (source.log_p, source.log_q))
        end = np.isin(y, source.eos)
        alive = end.cumsum(-1) - end == 0
        code, self._tables = np.zeros(len(y), dtype=int), []
        for t in range(y.shape[1]):
            code = code * self._size + np.clip(y[:, t], 0, self._size - 1)
            sums = np.full((2, self._size ** (t + 1), log_p.shape[1]), -INF)
            for total, x in zip(sums, (log_p, log_q), strict=True):
                np.logaddexp.at(total, code[alive[:, t]], x[alive[:, t]])
            possible = sums[1] > -INF
            self._tables.append(np.where(possible, sums[0] - np.where(possible, sums[1], 0), -INF))

    def next_log_psi(self, prefix: Any) -> np.ndarray:
        """As a `NextTwist`."""
        known = np.clip(np.asarray(prefix), 0, self._size - 1)
        t = known.shape[-1]
        code = (known * self._size ** np.arange(t)[::-1]).sum(-1)
        rows = code[..., None] * self._size + np.arange(self._size)
        return self._tables[t][rows, np.arange(code.shape[1])[:, None]]


def memoryless(
    probs: Any,
    length: int,
    potential: Callable[[np.ndarray], np.ndarray],
    *,
    eos: Sequence[int] = (),
    pad: int = 0,
    **settings: Any,
) -> TableSource:
    """Prior of independent tokens with ``probs`` (*contexts, V), tilted by a potential."""
    probs = np.asarray(probs, dtype=float)
    rows = np.broadcast_to(probs[..., None, :], (*probs.shape, probs.shape[-1]))
    return markov(probs, rows, length, potential, eos=eos, pad=pad, **settings)


def markov(
    initial: Any,
    transition: Any,
    length: int,
    potential: Callable[[np.ndarray], np.ndarray],
    *,
    eos: Sequence[int] = (),
    pad: int = 0,
    **settings: Any,
) -> TableSource:
    """Prior of a Markov chain, ``initial`` (*contexts, V) and ``transition`` (*contexts, V, V).

    ``potential(y)`` maps outcomes (N, T) to (N,), or to (N, *contexts).
    """
    initial, transition = np.asarray(initial, dtype=float), np.asarray(transition, dtype=float)
    y = sequences(initial.shape[-1], length, eos=eos, pad=pad)
    end = np.isin(y, eos)
    alive = end.cumsum(-1) - end == 0
    log_q = log(initial)[..., y[:, 0]]
    for t in range(1, length):
        step = log(transition)[..., y[:, t - 1], y[:, t]]
        log_q = log_q + np.where(alive[:, t], step, 0.0)
    log_q = np.moveaxis(log_q, -1, 0)
    phi = np.asarray(potential(y), dtype=float)
    phi = phi.reshape(*phi.shape, *(1,) * (log_q.ndim - phi.ndim))
    return TableSource(
        y, log_q, log_q + phi, vocabulary=initial.shape[-1], eos=eos, pad=pad, **settings
    )


def bandit(*, seed: int = 0, contexts: int | None = None) -> TableSource:
    """Six outcomes, two of them rejected, and a proposal that is not the prior."""
    prior = np.array([0.36, 0.24, 0.2, 0.12, 0.05, 0.03])
    log_p = log(prior) + np.array([0.0, 1.0, -0.5, 2.0, -INF, -INF])
    log_q = log([0.3, 0.15, 0.25, 0.1, 0.12, 0.08])
    if contexts is not None:
        shift = 0.3 * np.arange(contexts)
        log_q = np.stack([np.roll(log_q, c) for c in range(contexts)], axis=-1)
        log_p = np.stack([np.roll(log_p, c) + shift[c] for c in range(contexts)], axis=-1)
    return TableSource(np.arange(6), log_q, log_p, seed=seed, name="bandit")


def abab(*, seed: int = 0, eos: Sequence[int] = ()) -> TableSource:
    """Markov sequences of 3 tokens, length 4, tilted and constrained; with ``eos`` they may end."""
    initial = np.array([0.5, 0.3, 0.2])
    transition = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]])

    def potential(y: np.ndarray) -> np.ndarray:
        ones = (y == 1).sum(-1)
        return np.where(ones >= 1, 0.8 * (y == 0).sum(-1) - 0.4 * ones, -INF)

    # Padding is 2, which only the EOS of these tests is: it adds nothing to the potential.
    return markov(initial, transition, 4, potential, eos=eos, pad=2, seed=seed, name="abab")


def chi_square_p(counts: np.ndarray, probs: np.ndarray, *, least: float = 5.0) -> float:
    """p-value of counts (N,) of independent draws against probabilities; rare cells are pooled.

    A count where the probability is 0 gives 0.
    """
    from scipy.stats import chi2

    if np.any(counts[probs <= 0] > 0):
        return 0.0
    expected = counts.sum() * probs / probs.sum()
    small = expected < least
    got = np.append(counts[~small], counts[small].sum())
    want = np.append(expected[~small], expected[small].sum())
    keep = want > 0
    statistic = ((got[keep] - want[keep]) ** 2 / want[keep]).sum()
    return float(chi2.sf(statistic, max(keep.sum() - 1, 1)))
