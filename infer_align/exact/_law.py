"""`RewardLaw`: the distribution of a reward under the prior, and sums over its levels."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from infer_align import _ties
from infer_align._arguments import array, instance, scalar
from infer_align._numerics import (
    Array,
    as_real,
    check_defined,
    concrete,
    cumulative_logsumexp,
    log1mexp,
    logsumexp,
    namespace,
)
from infer_align.divergences import FDivergence, reverse_kl
from infer_align.exact._edges import Edges
from infer_align.exact._listing import Levels

LevelMean = Callable[[Array], Array]

OFFSET = 0.1
"""Rewards whose range is a smaller share of the largest have an offset in common."""
FLOATS_DO = 1e4
"""θ·reward up to which the rounding of rewards moves no tilt: 1e-16 of it."""


@dataclass(frozen=True, eq=False)
class RewardLaw:
    r"""The law of a reward under the prior: its levels, and their probabilities.

    A *level* ℓ is a value that the reward takes, P_ℓ its probability. Every policy that reweights
    the prior by the reward alone, π(y) = prior(y)·B_ℓ/P_ℓ with ℓ the level of y (tilts, best-of-n,
    thresholds, f-divergence-regularised optima), is the vector of its log-masses log B over the
    levels. Divergences between two such policies over all outcomes are those of their vectors,

    .. math:: D_f(π‖π') = \sum_ℓ B'_ℓ\, f(B_ℓ / B'_ℓ),

    since within a level all of them are the prior.

    Made by `reward_law` for sequences of independent letters, by `RewardLaw.of_outcomes` from any
    list of outcomes, by `Chain.reward_law` for Markov models.

    Parameters
    ----------
    rewards : array, shape (L,)
        Of the levels, ascending; totals over the sequence.
    log_prob : array, shape (L,)
        Log-probabilities of the levels under the prior. NumPy, or JAX or torch to differentiate.
    length : int
        Number of tokens m, for what is quoted per token.
    engine : str
        How the law was found.
    reason : str
        Why that way.
    make_keys : callable
        Makes `keys`, when they are asked for.
    step : float, optional
        Of the lattice that holds all levels, in units of the reward.
    error : float
        0: exact, but for rounding. Otherwise no outcome's reward is farther than this from its
        level.
    log_error : float
        Estimated error of the log-probabilities, where they are asymptotic.
    level_mean : callable
        Letter values (k,) → E[Σ_t values[y_t] | level], shape (L,).
    make_edges : callable, optional
        Makes the sequence model behind an exact law, for `autoregressive`.
    make_above : callable, optional
        Index of a level → rewards minus that level's, without the rounding of either, shape (L,).

    Examples
    --------
    >>> from infer_align.exact import reward_law
    >>> law = reward_law([0.5, 0.3, 0.2], [0, 1, 2], 10)
    >>> law
    RewardLaw(21 levels of 10 tokens, exact; tilted FFT: rewards on a lattice of step 1)
    >>> round(float(law.expected_reward(law.log_prob)), 6)
    7.0
    """

    rewards: Array
    log_prob: Array
    length: int
    engine: str
    reason: str
    make_keys: Callable[[], np.ndarray] = field(repr=False)
    level_mean: LevelMean = field(repr=False)
    step: float | None = None
    error: float = 0.0
    log_error: float = 0.0
    make_edges: Callable[[], Edges] | None = field(default=None, repr=False)
    make_above: Callable[[int], np.ndarray] | None = field(default=None, repr=False)

    @classmethod
    def of_outcomes(
        cls,
        rewards: Any,
        log_prob: Float[Any, " n"],
        *,
        length: int = 1,
        tolerance: float | int | None = None,
    ) -> "RewardLaw":
        """The law of a reward over listed outcomes, those of a `Space` for instance.

        Parameters
        ----------
        rewards : sequence of n numbers
            One an outcome. Floats tie within 16 units in the last place of the largest, as for
            `infer_align.RewardCdf`: sums in another order are one level. Whole numbers, fractions,
            decimals and texts tie where they are equal, as written.
        log_prob : array, shape (n,)
            Normalised log-probabilities of the outcomes; −inf is ordinary.
        length : int
            Number of tokens, for what is quoted per token.
        tolerance : float, optional
            Distance within which floats tie; 0 takes them as they are written too.

        Returns
        -------
        RewardLaw
            Its ``level_mean`` takes one value an outcome.

        Raises
        ------
        ValueError
            If lengths differ, a reward is not finite, or probabilities do not sum to one.

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align.exact import RewardLaw
        >>> law = RewardLaw.of_outcomes([0.1 + 0.2, 0.1, 0.3], np.log([0.2, 0.5, 0.3]))
        >>> law.rewards.tolist(), np.exp(law.log_prob).round(6).tolist()
        ([0.1, 0.3], [0.5, 0.5])
        """
        xp, given = namespace(log_prob), len(rewards)
        if given != log_prob.shape[0]:
            raise ValueError(
                f"{given} rewards for {log_prob.shape[0]} outcomes; give one reward an outcome"
            )
        check_normalised(xp.exp(log_prob), "the outcomes' probabilities")
        known = concrete(log_prob)
        possible = np.ones(given, dtype=bool) if known is None else known > -math.inf
        levels = Levels(rewards, np.flatnonzero(possible), tolerance)
        return cls(
            xp.asarray(levels.values), levels.log_sums(log_prob), length, "listing",
            f"{possible.sum()} outcomes listed", lambda: levels.keys,
            lambda values: levels.means(log_prob, values), make_above=levels.above,
        )  # fmt: skip

    def __len__(self) -> int:
        return self.log_prob.shape[0]

    def __repr__(self) -> str:
        quality = "exact" if self.exact else f"rewards within {self.error:.3g}"
        if self.log_error:
            quality += f", log-probabilities within about {self.log_error:.1g}"
        return (
            f"RewardLaw({len(self)} levels of {self.length} tokens, {quality}; "
            f"{self.engine}: {self.reason})"
        )

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding separates this from the true law."""
        return self.error == 0 and self.log_error == 0

    @cached_property
    def keys(self) -> np.ndarray:
        """What tells the levels apart exactly: integers, shape (L,).

        For rational rewards the reward itself, in units of their common denominator.
        """
        return self.make_keys()

    @cached_property
    def log_above(self) -> Array:
        """log P(reward > level), summed from the top; −inf at the highest level."""
        xp = namespace(self.log_prob)
        summed = xp.flip(cumulative_logsumexp(xp.flip(self.log_prob, axis=0)), axis=0)
        return xp.concat([summed[1:], xp.full_like(summed[:1], -math.inf)])

    @cached_property
    def log_cdf(self) -> Array:
        """log P(reward <= level): from the tail where that is the smaller part."""
        xp = namespace(self.log_prob)
        high = self.log_above < -math.log(2)
        if isinstance(high, np.ndarray):  # the tail falls, so these are the last ones
            low = len(high) - np.count_nonzero(high)
            below = cumulative_logsumexp(self.log_prob[:low])
            return np.concatenate([below, log1mexp(self.log_above[low:])])
        from_above = log1mexp(xp.where(high, self.log_above, -1.0))
        return xp.where(high, from_above, cumulative_logsumexp(self.log_prob))

    def above(self, level: int) -> Array:
        """Rewards minus that of a level, shape (L,).

        Where rewards are rational, without the rounding of either: two that are closer than floats
        of their size can tell are still so far apart.

        Parameters
        ----------
        level : int
            Index; -1 is the highest level.
        """
        if self.make_above is None or not isinstance(self.log_prob, np.ndarray):
            return self.rewards - self.rewards[level]
        return self.make_above(level)

    def _centred(self, theta: Any) -> tuple[Any, Array]:
        """A reward, and all rewards minus it; near the tilt's mass if rounding would show there."""
        span = self._span
        if span is not None and span[1] - span[0] < OFFSET * max(map(abs, span)):
            return self.rewards[-1], self.above(-1)
        if not isinstance(self.log_prob, np.ndarray) or not isinstance(theta, int | float):
            return 0.0, self.rewards
        if abs(theta) * max(abs(self.rewards[0]), abs(self.rewards[-1])) < FLOATS_DO:
            return 0.0, self.rewards
        mode = int(np.argmax(self.log_prob + theta * self.above(-1 if theta > 0 else 0)))
        return float(self.rewards[mode]), self.above(mode)

    def cumulants(self, theta: Any) -> tuple[Any, Any, Any, Any]:
        """Λ(θ) = log E[exp(θ r)] and its first three derivatives: mean, variance, third.

        Parameters
        ----------
        theta : float
            Inverse temperature, any real number.
        """
        xp, theta = namespace(self.log_prob), scalar("theta", theta, need="a finite number")
        if isinstance(theta, float) and not math.isfinite(theta):
            raise ValueError(
                f"theta, an inverse temperature, must be a finite number, got {theta}; its limits "
                "are reward_range and kl_limits"
            )
        centre, rewards = self._centred(theta)
        log_tilt = self.log_prob + theta * rewards
        log_z = logsumexp(log_tilt, axis=0)
        p = xp.exp(log_tilt - log_z)
        mean = xp.sum(p * rewards)
        centred = rewards - mean
        variance, third = xp.sum(p * centred**2), xp.sum(p * centred**3)
        return theta * centre + log_z, centre + mean, variance, third

    def kl_of_tilt(self, theta: Any) -> Any:
        """KL of the tilt at inverse temperature θ to the prior, accurate however small.

        Parameters
        ----------
        theta : float
        """
        xp = namespace(self.log_prob)
        _, rewards = self._centred(theta)
        at_prior = xp.sum(xp.exp(self.log_prob) * rewards)
        log_t = theta * (rewards - at_prior)
        log_t = log_t - logsumexp(self.log_prob + log_t, axis=0)
        known = concrete(log_t)
        if known is None or not np.abs(known).max() < 0.01:
            return reverse_kl(self._tilted(theta), self.log_prob)
        # E_p[t log t − t + 1] as a series, in which an error of log Z drops out.
        series = xp.zeros_like(log_t)
        for coefficient in (1 / 840, 1 / 144, 1 / 30, 1 / 8, 1 / 3, 1 / 2):
            series = coefficient + log_t * series
        return xp.sum(xp.exp(self.log_prob) * log_t**2 * series)

    def _tilted(self, theta: Any) -> Array:
        """Log-masses of the tilt at inverse temperature θ."""
        # Relative to its own mean, so that products stay small where the mass is.
        xp = namespace(self.log_prob)
        _, rewards = self._centred(theta)
        log_tilt = self.log_prob + theta * rewards
        mean = xp.sum(xp.exp(log_tilt - logsumexp(log_tilt, axis=0)) * rewards)
        log_tilt = self.log_prob + theta * (rewards - mean)
        return log_tilt - logsumexp(log_tilt, axis=0)

    @cached_property
    def _span(self) -> tuple[float, float] | None:
        """The lowest and the highest level; None where they are not known while tracing."""
        known = concrete(self.rewards)
        return None if known is None else (float(known[0]), float(known[-1]))

    @property
    def reward_range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return float(self.rewards[0]), float(self.rewards[-1])

    def at_least(self, reward: float | int) -> int:
        """Index of the first level that reaches a reward, L if none does.

        A level within 16 units in the last place of the largest reaches it: 3·0.2 is 0.6.

        Parameters
        ----------
        reward : float
            Total over the sequence.
        """
        levels = np.asarray(concrete(self.rewards))
        found = _ties.nearest(levels, reward)
        return found if found >= 0 else int(np.searchsorted(levels, reward))

    def log_tail(self, reward: float | int) -> Any:
        """log P(reward >= a threshold) under the prior, summed over the levels that reach it.

        Parameters
        ----------
        reward : float
            Total over the sequence.

        Returns
        -------
        float
            −inf where no level reaches it.

        Examples
        --------
        >>> from infer_align.exact import reward_law
        >>> round(float(reward_law([0.5, 0.3, 0.2], [0, 1, 2], 200).log_tail(200)), 4)
        -16.3867
        """
        first = self.at_least(reward)
        if first == 0:
            return 0.0 * self.log_prob[0]
        if first == len(self):
            return -math.inf
        return self.log_above[first - 1]

    @property
    def kl_limits(self) -> tuple[float, float]:
        """−log P of the lowest and of the highest level."""
        return -float(self.log_prob[0]), -float(self.log_prob[-1])

    @property
    def kl_max(self) -> float:
        """−log P(highest level): a larger KL buys no reward."""
        return self.kl_limits[1]

    def known(self) -> "RewardLaw":
        """The same law in NumPy, without gradients.

        Raises
        ------
        ValueError
            Where the values are not known, under ``jax.jit``.
        """
        if isinstance(self.log_prob, np.ndarray) and isinstance(self.rewards, np.ndarray):
            return self
        log_prob = concrete(self.log_prob)
        if log_prob is None:
            raise ValueError(
                "this solves an equation, which needs the law's numbers: it works under jax.grad, "
                "not inside jax.jit; solve outside and pass beta in"
            )
        return replace(self, rewards=np.asarray(concrete(self.rewards)), log_prob=log_prob)

    def log_z(self, beta: Any) -> Any:
        """log E_prior[exp(reward/beta)].

        Parameters
        ----------
        beta : float
            Temperature, > 0.
        """
        return self.cumulants(1 / check_beta(beta))[0]

    def tilt(self, beta: Any) -> Float[Any, " levels"]:
        r"""The tilt prior·exp(reward/beta)/Z: the KL-regularised optimum.

        It maximises E[r] − beta·KL(π‖prior), and E[r] among all policies of its KL (Yang et al.
        2024, arXiv 2404.01730).

        Parameters
        ----------
        beta : float
            Temperature; 0 is the limit, the prior on the highest level, and inf is the prior.
            Negative ones prefer low rewards, −0.0 only the lowest.

        Returns
        -------
        array, shape (L,)
            Log-masses of the levels.
        """
        xp = namespace(self.log_prob)
        beta = scalar("beta, a temperature,", beta)
        if isinstance(beta, int | float) and (beta == 0 or math.isnan(beta)):
            if math.isnan(beta):
                raise ValueError("beta is a temperature and must be a number, got nan")
            end = len(self) - 1 if math.copysign(1.0, beta) > 0 else 0
            return xp.where(xp.arange(len(self)) == end, 0.0 * self.log_prob, -math.inf)
        if isinstance(beta, float) and math.isinf(beta):
            return self.log_prob
        return self._tilted(1 / beta)

    def levels(self, log_policy: Any, what: str = "log_policy") -> Any:
        """Log-masses of these levels, as they are.

        Parameters
        ----------
        log_policy : array, shape (L,)
        what : str
            For messages.

        Raises
        ------
        TypeError, ValueError
            For what is no real array, of another shape, NaN or +inf.
        """
        array(what, log_policy, need="an array of log-masses, one a level")
        if tuple(log_policy.shape) != (len(self),):
            raise ValueError(
                f"{what} has shape {tuple(log_policy.shape)}, and the law has {len(self)} levels: "
                f"give one log-mass a level, ({len(self)},)"
            )
        return check_defined(as_real(log_policy, what), what)

    def expectation(self, values: Array, log_policy: Float[Any, " levels"]) -> Any:
        """Σ_ℓ B_ℓ·values_ℓ.

        Parameters
        ----------
        values : array, shape (L,)
        log_policy : array, shape (L,)
            Log-masses.
        """
        xp = namespace(self.levels(log_policy))
        possible = log_policy > -math.inf
        return xp.sum(xp.exp(log_policy) * xp.where(possible, values, 0.0))

    def expected_reward(self, log_policy: Float[Any, " levels"]) -> Any:
        """E_π[reward], total over the sequence.

        Parameters
        ----------
        log_policy : array, shape (L,)
            Log-masses.
        """
        return self.expectation(self.rewards, log_policy)

    def divergence(
        self,
        divergence: FDivergence,
        log_policy: Float[Any, " levels"],
        log_target: Float[Any, " levels"],
    ) -> Any:
        """D_f(π‖p) over all outcomes, of two policies that reweight the prior by the reward.

        Parameters
        ----------
        divergence : FDivergence
            From `infer_align.divergences`.
        log_policy, log_target : array, shape (L,)
            Log-masses.

        Examples
        --------
        >>> from infer_align.divergences import total_variation
        >>> from infer_align.exact import best_of_n, reward_law
        >>> law = reward_law([0.5, 0.5], [0, 1])
        >>> float(law.divergence(total_variation, best_of_n(law, 2), law.log_prob))
        0.25
        """
        return divergence(self.levels(log_policy), self.levels(log_target, "log_target"))

    def kl_to_prior(self, log_policy: Float[Any, " levels"]) -> Any:
        """KL(π‖prior), total over the sequence.

        Parameters
        ----------
        log_policy : array, shape (L,)
            Log-masses.
        """
        xp = namespace(self.levels(log_policy))
        possible = log_policy > -math.inf
        log_t = xp.where(possible, log_policy, self.log_prob) - self.log_prob
        total = xp.sum(xp.exp(log_policy) * log_t)
        return xp.where(total < 0, xp.zeros_like(total), total)[()]  # rounding, at the prior

    def win_rate(self, log_policy: Float[Any, " levels"]) -> Any:
        """P(π's draw beats the prior's), a tie counting half.

        Parameters
        ----------
        log_policy : array, shape (L,)
            Log-masses.
        """
        return self.expectation(self.win_rates, log_policy)

    @cached_property
    def win_rates(self) -> Array:
        """P(reward < level) + P(reward = level)/2, the calibrated reward of each level."""
        xp = namespace(self.log_prob)
        cdf, mass = xp.exp(self.log_cdf), xp.exp(self.log_prob)
        return xp.where(cdf < 0.5, cdf - mass / 2, 1 - (xp.exp(self.log_above) + mass / 2))

    def calibrated(self) -> "RewardLaw":
        """The law of the calibrated reward: each level's win rate against the prior.

        Its tilts are the win-rate optimal policies: they win most often at their KL.

        Returns
        -------
        RewardLaw
            With the same levels, so that its policies are policies here.
        """
        return RewardLaw(
            self.win_rates, self.log_prob, self.length, self.engine,
            f"{self.reason}; rewards replaced by win rates", self.make_keys, self.level_mean,
            None, self.error and math.inf, self.log_error, self.make_edges,
        )  # fmt: skip

    def token_marginals(self, log_policy: Float[Any, " levels"], letters: int) -> Any:
        """Expected share of each letter in the sequence, shape (letters,).

        Parameters
        ----------
        log_policy : array, shape (L,)
            Log-masses.
        letters : int
            Number of letters of the alphabet.
        """
        xp = namespace(log_policy)
        units = np.eye(letters)
        shares = [self.expectation(self.level_mean(unit), log_policy) for unit in units]
        return xp.stack(shares) / self.length


def check_law(law: Any) -> None:
    """Refuse what is no `RewardLaw`: a target, or probabilities."""
    instance("law", law, RewardLaw, "exact.reward_law(probs, rewards)")


def check_beta(beta: Any) -> Any:
    """A temperature that is positive, if that can be known."""
    beta = scalar("beta, a temperature,", beta, need="a positive number")
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(
            f"beta is a temperature (policy = prior·exp(reward/beta)) and must be positive, got "
            f"{beta}; of law.tilt, 0 is the limit of the highest level"
        )
    return beta


def check_normalised(probs: Array, name: str) -> None:
    """Refuse probabilities that are negative, not numbers, or do not sum to one."""
    known = concrete(probs)
    if known is None:
        return
    double = known.dtype == np.float64
    known = known.astype(float)
    if bad := [(j, v) for j, v in enumerate(known.ravel().tolist()) if not v >= 0]:
        raise ValueError(
            f"{name} must be numbers >= 0, and entry {bad[0][0]} is {bad[0][1]}; correct it, or "
            "leave the letter out if it never occurs"
        )
    total = math.fsum(known.ravel().tolist())
    if not abs(total - 1) <= (1e-9 if double else 1e-5):
        raise ValueError(
            f"{name} sum to {total:.12g}, not to 1; divide them by their sum if that is what you "
            "mean"
        )
