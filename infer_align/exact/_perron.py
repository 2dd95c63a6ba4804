r"""The Perron root of a tilted transition matrix: Λ(θ) = log ρ(P_ij e^{θ g_ij}), and its family.

Far tilts have entries beyond the floats. They are balanced first by the best cycles: with λ the
greatest mean reward of a cycle and h_i the largest excess over λ of a walk from i to a best cycle,

.. math:: P_{ij} e^{θ g_{ij}} = e^{θλ}\, e^{θ h_i}\, P_{ij} e^{θ s_{ij}}\, e^{-θ h_j}, \qquad
          s_{ij} = g_{ij} - λ + h_j - h_i \le 0,

where every state has an edge with s = 0, so that the eigenvector of the balanced matrix has entries
of one size whatever θ. For θ < 0 the worst cycles take their place.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cached_property
from typing import NamedTuple

import numpy as np

DIGITS = 90
"""Of the arithmetic on rewards, which are known to 60."""
TIGHT = Decimal(10) ** -40
"""Cycle means and walks that differ by less are equal."""
NEVER = Decimal("-Infinity")


class Balance(NamedTuple):
    """How the tilts of one side are balanced."""

    best: float
    """Greatest mean of side·reward over cycles, λ."""
    gap: np.ndarray
    """s <= 0 of the edges, shape (S, S); −inf where there is none."""
    height: np.ndarray
    """h of the states, shape (S,)."""


@dataclass(frozen=True, eq=False)
class PerronFamily:
    r"""Tilts of a Markov chain per token, in the limit of long sequences; see `Chain.rate`.

    Parameters
    ----------
    log_transition : array, shape (S, S)
        Irreducible; −inf where there is no edge.
    rewards : array, shape (S, S)
        Of the edges.
    exact : array of Decimal, shape (S, S)
        The same, to 60 digits.
    """

    log_transition: np.ndarray
    rewards: np.ndarray
    exact: np.ndarray

    def __post_init__(self) -> None:
        reach = self._edges | np.eye(len(self.rewards), dtype=bool)
        for _ in range(len(reach).bit_length()):
            reach = reach @ reach
        if not reach.all():
            i, j = (int(x[0]) for x in np.nonzero(~reach))
            raise ValueError(
                f"state {j} cannot be reached from state {i}: rates per token need an irreducible "
                "chain; drop transient states, or take one closed class, or use a finite length"
            )

    @property
    def _edges(self) -> np.ndarray:
        return self.log_transition > -math.inf

    def kernel(self, theta: float | int) -> tuple[float, np.ndarray, np.ndarray]:
        """Λ(θ), the limiting transition matrix of the tilt, and its stationary law.

        Parameters
        ----------
        theta : float
            Inverse temperature.
        """
        balance = self._best if theta >= 0 else self._worst
        with np.errstate(invalid="ignore"):  # no edge, however little it is tilted
            gap = np.where(self._edges, balance.gap, -math.inf)
            log_m = self.log_transition + np.where(self._edges, abs(theta) * gap, 0.0)
        values, vectors = np.linalg.eig(np.exp(log_m))
        chosen = int(np.argmax(np.real(values)))
        root, right = float(np.real(values[chosen])), np.abs(np.real(vectors[:, chosen]))
        for _ in range(2):  # what the eigenvector lost of its smaller entries
            right = np.exp(log_m) @ right / root
        log_q = log_m + np.log(right)[None, :] - np.log(right)[:, None]
        log_q -= np.logaddexp.reduce(log_q, axis=1, keepdims=True)
        log_root = abs(theta) * balance.best + math.log(root)
        return log_root, np.exp(log_q), np.exp(_log_stationary(log_q))

    def cumulants(self, theta: float | int) -> tuple[float, float, float]:
        """Λ(θ), Λ′(θ) the mean reward of the tilt, and Λ″(θ) its asymptotic variance.

        Parameters
        ----------
        theta : float
            Inverse temperature.
        """
        log_root, q, stationary = self.kernel(theta)
        g = np.where(self._edges, self.rewards, 0.0)
        mean = float(stationary @ (q * g).sum(axis=1))
        centred = np.where(self._edges, g - mean, 0.0)
        drift = (q * centred).sum(axis=1)
        # The Poisson equation (I − Q) h = drift, with h orthogonal to the stationary law.
        states = len(q)
        h = np.linalg.solve(np.eye(states) - q + np.outer(np.ones(states), stationary), drift)
        variance = (q * (centred**2 + 2 * centred * h[None, :])).sum(axis=1)
        return log_root, mean, float(stationary @ variance)

    def kl_of_tilt(self, theta: float | int) -> float:
        """Relative entropy rate of the tilt to the chain: Σ π_i Q_ij log(Q_ij/P_ij).

        Parameters
        ----------
        theta : float
            Inverse temperature.
        """
        if abs(theta) * float(np.ptp(self.rewards[self._edges])) < 1e-4:
            # The integral of θΛ″(θ) by Gauss and Legendre: the tilt itself has lost its digits.
            nodes, weights = np.polynomial.legendre.leggauss(3)
            steps = (1 + nodes) / 2
            slopes = [self.cumulants(theta * step)[2] for step in steps]
            return float(weights / 2 @ (steps * slopes)) * theta * theta
        _, q, stationary = self.kernel(theta)
        p = np.exp(self.log_transition)
        ratio = np.where(q > 0, q / np.where(p > 0, p, 1.0), 1.0)
        # p (t log t − t + 1), which is small term by term where the tilt is.
        log_t, small = np.log(ratio), np.abs(ratio - 1) < 0.01
        series = np.polyval([1 / 144, 1 / 30, 1 / 8, 1 / 3, 1 / 2], log_t) * log_t**2
        terms = p * np.where(small, series, ratio * log_t - ratio + 1)
        terms = np.where(q > 0, terms, p)
        return float(stationary @ terms.sum(axis=1))

    def known(self) -> "PerronFamily":
        """Itself: its numbers are NumPy's."""
        return self

    @property
    def reward_range(self) -> tuple[float, float]:
        """Least and greatest mean reward of a cycle."""
        return 0.0 - self._worst.best, self._best.best

    @property
    def kl_max(self) -> float:
        """Limit of the relative entropy rate: a larger one buys no reward."""
        return self.kl_limits[1]

    @cached_property
    def kl_limits(self) -> tuple[float, float]:
        """−log ρ(P on the edges of the worst cycles), and of the best."""
        roots = [
            np.abs(np.linalg.eigvals(np.where(b.gap == 0, np.exp(self.log_transition), 0.0))).max()
            for b in (self._worst, self._best)
        ]
        return -math.log(float(roots[0])), -math.log(float(roots[1]))

    @cached_property
    def _best(self) -> Balance:
        return self._balance(1)

    @cached_property
    def _worst(self) -> Balance:
        return self._balance(-1)

    def _balance(self, side: int) -> Balance:
        with localcontext() as context:
            context.prec = DIGITS
            states = len(self.rewards)
            best = self._best_cycle(side)
            gains = [(i, j, side * self.exact[i, j] - best) for i, j in self._pairs]
            # Any potential: its tight edges hold the best cycles.
            into = _longest_walks([(j, i, gain) for i, j, gain in gains], [Decimal(0)] * states)
            tight = np.zeros((states, states), dtype=bool)
            for i, j, gain in gains:
                tight[i, j] = into[i] + gain >= into[j] - TIGHT
            closed = tight
            for _ in range(states.bit_length()):
                closed = closed | closed @ closed
            on_best = np.diag(closed)
            start = [Decimal(0) if c else NEVER for c in on_best]
            height = _longest_walks(gains, start)
            gap = np.full((states, states), -math.inf)
            for i, j, gain in gains:
                slack = gain + height[j] - height[i]
                gap[i, j] = 0.0 if slack >= -TIGHT else float(slack)
            return Balance(float(best), gap, np.array([float(h) for h in height]))

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """The edges."""
        return [(int(i), int(j)) for i, j in zip(*np.nonzero(self._edges), strict=True)]

    def _best_cycle(self, side: int) -> Decimal:
        """Greatest mean of side·reward over cycles (Karp 1978)."""
        states = len(self.rewards)
        walks = [[Decimal(0)] + [NEVER] * (states - 1)]
        for _ in range(states):
            here = [NEVER] * states
            for i, j in self._pairs:
                here[j] = max(here[j], walks[-1][i] + side * self.exact[i, j])
            walks.append(here)
        means = [
            min(
                (last - walk[j]) / (states - k)
                for k, walk in enumerate(walks[:-1])
                if walk[j] > NEVER
            )
            for j, last in enumerate(walks[-1])
            if last > NEVER
        ]
        return max(means)


def _longest_walks(gains: list[tuple[int, int, Decimal]], start: list[Decimal]) -> list[Decimal]:
    """The largest start[j] plus gains of a walk from i to j, over all j; no cycle gains."""
    height = list(start)
    for _ in start:
        raised = list(height)
        for i, j, gain in gains:
            raised[i] = max(raised[i], gain + height[j])
        if raised == height:
            break
        height = raised
    return height


def _log_stationary(log_q: np.ndarray) -> np.ndarray:
    """Log of the stationary law of a stochastic matrix, by elimination without subtractions.

    Grassmann, Taksar and Heyman 1985; in logarithms, so that the smallest entries count too.
    """
    a = log_q.copy()
    states = len(a)
    for n in range(states - 1, 0, -1):
        a[:n, n] -= np.logaddexp.reduce(a[n, :n])
        a[:n, :n] = np.logaddexp(a[:n, :n], a[:n, n][:, None] + a[n, :n][None, :])
    law = np.zeros(states)
    for n in range(1, states):
        law[n] = np.logaddexp.reduce(law[:n] + a[:n, n])
    return law - np.logaddexp.reduce(law)
