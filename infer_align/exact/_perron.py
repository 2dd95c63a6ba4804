r"""The Perron root of a tilted transition matrix: Λ(θ) = log ρ(P_ij e^{θ g_ij}) and its family."""

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np

TIGHT = Decimal(10) ** -40
"""Cycle means and path lengths that differ by less are equal: rewards are known to 60 digits."""


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
        reach = np.linalg.matrix_power(
            (self._edges | np.eye(len(self.rewards), dtype=bool)).astype(float),
            len(self.rewards),
        )
        if (reach == 0).any():
            i, j = (int(x[0]) for x in np.nonzero(reach == 0))
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
        log_m = self.log_transition + theta * np.where(self._edges, self.rewards, 0.0)
        scale = log_m.max()
        log_root, log_right = _perron_vector(log_m - scale)
        log_q = log_m - scale - log_root + log_right[None, :] - log_right[:, None]
        log_q -= np.logaddexp.reduce(log_q, axis=1, keepdims=True)
        _, log_left = _perron_vector(log_q.T)
        return scale + log_root, np.exp(log_q), np.exp(log_left - np.logaddexp.reduce(log_left))

    def cumulants(self, theta: float | int) -> tuple[float, float, float]:
        """Λ(θ), Λ′(θ) the mean reward of the tilt, and Λ″(θ) its asymptotic variance.

        Parameters
        ----------
        theta : float
            Inverse temperature.
        """
        log_root, q, stationary = self.kernel(float(theta))
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
        _, q, stationary = self.kernel(float(theta))
        p = np.exp(self.log_transition)
        ratio = np.where(q > 0, q / np.where(p > 0, p, 1.0), 1.0)
        # p (t log t − t + 1), which is small term by term where the tilt is.
        terms = p * (ratio * np.log(np.where(ratio > 0, ratio, 1.0)) - ratio + 1)
        return float(stationary @ np.where(p > 0, terms, 0.0).sum(axis=1))

    def known(self) -> "PerronFamily":
        """Itself: its numbers are NumPy's."""
        return self

    @cached_property
    def reward_range(self) -> tuple[float, float]:
        """Least and greatest mean reward of a cycle."""
        return 0.0 - float(self._best_cycle(-1)), float(self._best_cycle(1))

    @cached_property
    def kl_max(self) -> float:
        """Limit of the relative entropy rate: −log ρ(P on the edges of the best cycles)."""
        best, states = self._best_cycle(1), len(self.rewards)
        gains = [(i, j, self.exact[i, j] - best) for i, j in self._pairs]
        height = [Decimal(0)] * states
        for _ in range(states):
            raised = list(height)
            for i, j, gain in gains:
                raised[j] = max(raised[j], height[i] + gain)
            height = raised
        tight = np.zeros((states, states))
        for i, j, gain in gains:
            if height[i] + gain >= height[j] - TIGHT:
                tight[i, j] = math.exp(self.log_transition[i, j])
        return -math.log(float(np.abs(np.linalg.eigvals(tight)).max()))

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """The edges."""
        return [(int(i), int(j)) for i, j in zip(*np.nonzero(self._edges), strict=True)]

    def _best_cycle(self, side: int) -> Decimal:
        """Greatest mean of side·reward over cycles (Karp 1978)."""
        states, never = len(self.rewards), Decimal("-Infinity")
        walks = [[Decimal(0)] + [never] * (states - 1)]
        for _ in range(states):
            here = [never] * states
            for i, j in self._pairs:
                here[j] = max(here[j], walks[-1][i] + side * self.exact[i, j])
            walks.append(here)
        means = [
            min(
                (last - walk[j]) / (states - k)
                for k, walk in enumerate(walks[:-1])
                if walk[j] > never
            )
            for j, last in enumerate(walks[-1])
            if last > never
        ]
        return max(means)


def _perron_vector(log_m: np.ndarray) -> tuple[float, np.ndarray]:
    """Log of the Perron root of an irreducible matrix with entries <= 1, and of its vector."""
    values, vectors = np.linalg.eig(np.exp(log_m))
    chosen = int(np.argmax(np.real(values)))
    root = float(np.real(values[chosen]))
    with np.errstate(divide="ignore"):
        log_vector = np.log(np.abs(np.real(vectors[:, chosen])))
    # Iterations in log space restore the entries that floats lose beside the large ones.
    for _ in range(len(log_m) + 2):
        moved = np.logaddexp.reduce(log_m + log_vector[None, :], axis=1) - math.log(root)
        log_vector = np.logaddexp(moved, log_vector) - math.log(2)
    return math.log(root), log_vector - log_vector.max()
