r"""`RewardCdf`: how a reward is distributed under the prior.

Best-of-n, calibrated rewards and top fractions see a reward only through where it stands among the
prior's own. For an outcome of reward r that is the mass below it, of its level and above it,

.. math:: F(r^-) = P(R < r), \qquad P(r) = P(R = r), \qquad 1 - F(r) = P(R > r),

all kept as logarithms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, is_torch_array
from jaxtyping import Float

from infer_align._numerics import Array, as_real, logsumexp, namespace, own
from infer_align._ties import precision, real, widths
from infer_align.targets._levels import Sums, Table, host, known, look_up, table_of
from infer_align.targets._target import LogPotential


class Spread(NamedTuple):
    """Squared sample weights of three classes: the variance of an estimated cdf."""

    below: Array
    at: Array
    above: Array


class Place(NamedTuple):
    """Where a reward stands among the prior's: logarithms of masses, each of the reward's shape."""

    log_below: Array
    """log F(r⁻)."""
    log_mass: Array
    """log P(r), of the level; −inf where r is no level: rewards there never tie."""
    log_above: Array
    """log (1 − F(r))."""
    log_cdf: Array
    """log F(r)."""
    spread: Spread | None = None
    """For the standard errors of an estimated cdf; None where it is exact."""

    def map(self, function: Callable[[Array], Array]) -> "Place":
        """The same with a function applied to each array.

        Parameters
        ----------
        function : callable
        """
        below, mass, above, cdf = (
            function(x) for x in (self.log_below, self.log_mass, self.log_above, self.log_cdf)
        )
        s = self.spread
        spread = s and Spread(function(s.below), function(s.at), function(s.above))
        return Place(below, mass, above, cdf, spread)

    def standard_error(self, slope: Array, slope_below: Array) -> Array:
        """Of a function of F(r) and F(r⁻), by the delta method.

        Parameters
        ----------
        slope, slope_below : array
            Its derivatives in the two.
        """
        assert self.spread is not None
        xp = namespace(self.log_cdf)
        cdf, above = xp.exp(self.log_cdf), xp.exp(self.log_above)
        below, rest = xp.exp(self.log_below), xp.exp(self.log_above) + xp.exp(self.log_mass)
        # What one sample of each class moves, had it more weight.
        moves = (
            slope * above + slope_below * rest,
            slope * above - slope_below * below,
            -slope * cdf - slope_below * below,
        )
        parts = [square * move**2 for square, move in zip(self.spread, moves, strict=True)]
        return xp.sqrt(sum(parts[1:], parts[0]))


@dataclass(frozen=True, eq=False)
class RewardCdf:
    r"""The distribution of a reward under the prior, in each context.

    Made by `exact` from listed outcomes or levels (``infer_align.exact.reward_cdf`` lists them), by
    `continuous` from a formula, by `estimate` from samples of the prior.

    Parameters
    ----------
    shape : tuple of int
        Of the contexts.
    table : Table, optional
        Sorted rewards and their masses.
    formula : callable, optional
        ``reward -> (log F, log(1 − F))``.
    size : array, shape (contexts,), optional
        Effective number of samples of an estimate; None: exact.
    tolerance : float, optional
        Distance within which rewards tie, and the most that a level is wide. By default 16 units in
        the last place of the largest reward, the lowest level apart.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.targets import RewardCdf
    >>> cdf = RewardCdf.exact(np.array([0.0, 1.0, 1.0]), np.log([0.5, 0.3, 0.2]))
    >>> place = cdf.at(np.array([0.0, 1.0]))
    >>> np.exp(place.log_below).round(6).tolist(), np.exp(place.log_mass).round(6).tolist()
    ([0.0, 0.5], [0.5, 0.5])
    """

    shape: tuple[int, ...]
    table: Table | None = None
    formula: Callable[[Array], tuple[Array, Array]] | None = None
    size: Array | None = None
    tolerance: float | int | None = None

    @classmethod
    def exact(
        cls,
        rewards: Float[Any, "N *contexts"],
        log_prob: Float[Any, "N *contexts"],
        *,
        tolerance: float | int | None = None,
    ) -> "RewardCdf":
        """From the rewards of all outcomes, or of all levels, and their log-probabilities.

        Parameters
        ----------
        rewards : array, shape (N, *contexts)
            ``-inf`` is an ordinary reward, the lowest.
        log_prob : array, shape (N, *contexts)
            Normalised, of the prior. Differentiable where the library is; safe under ``jax.jit``.
        tolerance : float, optional
            Rewards that are closer tie.

        Raises
        ------
        ValueError
            For NaN, shapes that differ, or probabilities that do not sum to one.
        """
        rewards, log_prob, shape = _flat(rewards, log_prob)
        plain = known(log_prob)
        if plain is not None:
            worst = float(np.abs(np.exp(plain).sum(axis=0) - 1).max())
            if not worst <= (1e-7 if plain.dtype == np.float64 else 1e-4):
                raise ValueError(
                    f"the probabilities of the {len(plain)} rewards miss 1 by {worst:.3g}; list "
                    "every outcome of the prior once, or give rewards of samples to "
                    "RewardCdf.estimate"
                )
        table = table_of(rewards, log_prob, widths(rewards, tolerance), squares=False)
        return cls(shape, table, tolerance=tolerance)

    @classmethod
    def continuous(
        cls, cdf: Callable[[Array], Array], above: Callable[[Array], Array] | None = None
    ) -> "RewardCdf":
        """From a formula, for a reward that never ties.

        Parameters
        ----------
        cdf : callable
            ``reward -> F(reward)``, in the library of the reward.
        above : callable, optional
            ``reward -> 1 − F(reward)``, which has more digits where F is nearly 1.

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align.targets import RewardCdf
        >>> uniform = RewardCdf.continuous(lambda r: r)
        >>> np.exp(uniform.at(np.array([0.25])).log_above).tolist()
        [0.75]
        """

        def formula(r: Array) -> tuple[Array, Array]:
            upper = cdf(r)
            return _log(upper), _log(1 - upper if above is None else above(r))

        return cls((), formula=formula)

    @classmethod
    def estimate(
        cls,
        rewards: Float[Any, "m *contexts"],
        log_weights: Float[Any, "m *contexts"] | None = None,
        *,
        tolerance: float | int | None = None,
    ) -> "RewardCdf":
        r"""From the rewards of m samples, the outcome asked about counting as one more.

        .. math:: \hat F(r) = \frac{m \hat F_m(r) + 1}{m + 1}, \qquad
                  \hat F(r^-) = \frac{m \hat F_m(r^-)}{m + 1}

        So a reward below all samples has F̂ = 1/(m + 1), and none is impossible. A fresh draw and
        the m samples are exchangeable: whatever the law of the reward, best-of-n weights and top
        fractions of fresh draws average exactly to what they should. Weighted samples count by
        their effective number (Kish) in place of m, and average so only as it grows.

        Parameters
        ----------
        rewards : array, shape (m, *contexts)
            Of samples of the prior, independent of the outcomes that will be assessed.
        log_weights : array, shape (m, *contexts), optional
            log prior/q up to a constant per context, of samples of another distribution q.
        tolerance : float, optional
            Rewards that are closer tie.

        Raises
        ------
        ValueError
            For NaN, fewer than two samples, or a context in which all weights are zero.

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align.targets import RewardCdf
        >>> cdf = RewardCdf.estimate(np.array([0.0, 1.0, 1.0]))
        >>> np.exp(cdf.at(np.array([-1.0, 1.0, 2.0])).log_cdf).round(6).tolist()
        [0.25, 1.0, 1.0]
        """
        xp = namespace(rewards)
        weights = xp.zeros_like(real(rewards)) if log_weights is None else log_weights
        rewards, weights, shape = _flat(rewards, weights)
        if rewards.shape[0] < 2:
            raise ValueError(
                f"a cdf is estimated from at least 2 samples, got {rewards.shape[0]} on axis 0"
            )
        total = logsumexp(weights, axis=0)
        plain = known(total)
        if plain is not None and (empty := int(np.isneginf(plain).sum())):
            raise ValueError(
                f"all samples have weight 0 in {empty} of {len(plain)} contexts; draw from a "
                "distribution that covers the prior"
            )
        log_prob = weights - total
        table = table_of(rewards, log_prob, widths(rewards, tolerance), squares=True)
        size = namespace(log_prob).exp(-logsumexp(2 * log_prob, axis=0))
        return cls(shape, table, size=size, tolerance=tolerance)

    @property
    def estimated(self) -> bool:
        """Whether it is estimated from samples."""
        return self.size is not None

    def at(self, reward: Float[Any, "*n_contexts"]) -> Place:
        """Where rewards stand among the prior's.

        Parameters
        ----------
        reward : array, shape (*n, *contexts)
            In any library. A reward that is none of the levels has ``log_mass`` −inf.

        Returns
        -------
        Place
            In the library of the rewards.

        Raises
        ------
        ValueError
            If the trailing axes are not the contexts, or a reward is NaN.
        """
        reward = reward if _is_array(reward) else np.asarray(reward)
        shape = tuple(reward.shape)
        if shape[len(shape) - len(self.shape) :] != self.shape or len(shape) < len(self.shape):
            raise ValueError(
                f"rewards of shape {shape} for a cdf of contexts {self.shape}; the trailing axes "
                "must be the contexts: cdf.for_contexts(labels) picks those of a batch"
            )
        _no_nan(reward)
        xp, r = namespace(reward), real(reward)
        plain = host(reward)
        if (
            plain is not reward
            and self.table is not None
            and isinstance(self.table.rewards, np.ndarray)
        ):
            place = self.at(plain)  # compiling the search takes seconds
            return place.map(xp.asarray)
        if self.formula is not None:
            log_cdf, log_above = self.formula(r)
            return Place(log_cdf, xp.full_like(log_cdf, -math.inf), log_above, log_cdf)
        r = xp.reshape(r, (-1, math.prod(self.shape)))
        table, size = self._as(reward)
        # The coarser precision of the two decides what ties.
        coarser = 1.0
        if self.tolerance is None:
            coarser = max(precision(r) / precision(table.rewards), 1.0)
        found = look_up(table, table.sums, r, coarser)
        place = Place(found.below, found.at, found.above, found.up_to)
        if size is not None and table.squares is not None:
            squares = look_up(table, table.squares, r, coarser)
            place = _with_own(place, squares, size)
        return _shaped(place, shape)

    def standard_error(self, reward: Float[Any, "*n_contexts"]) -> Array:
        """Standard error of F(r); 0 where the cdf is exact.

        Parameters
        ----------
        reward : array, shape (*n, *contexts)
        """
        place = self.at(reward)
        one = namespace(place.log_cdf).ones_like(place.log_cdf)
        return 0 * one if place.spread is None else place.standard_error(one, 0 * one)

    def for_contexts(self, labels: Sequence[Any]) -> "CdfByContext":
        """The same for targets that are asked about some of the contexts at a time, as fits do.

        Parameters
        ----------
        labels : sequence
            Of the contexts, one an entry: the prompts, in the order of this cdf's last axis.

        Returns
        -------
        CdfByContext
            ``(contexts, ...) -> RewardCdf`` of these contexts, to be given in place of a cdf.

        Raises
        ------
        ValueError
            If there is not one label a context.
        """
        if self.shape != (len(labels),):
            raise ValueError(
                f"{len(labels)} labels for a cdf of contexts {self.shape}; give one a context"
            )
        return CdfByContext(self, tuple(labels))

    def _as(self, like: Array) -> tuple[Table, Array | None]:
        """The table in the library of an array."""
        assert self.table is not None
        convert = _converter(like)
        table = _mapped(convert, self.table)
        return table, None if self.size is None else convert(self.size)


@dataclass(frozen=True, eq=False)
class CdfByContext:
    """A cdf of many contexts, of which a target asks for some; see `RewardCdf.for_contexts`."""

    cdf: RewardCdf
    labels: tuple[Any, ...]

    @property
    def estimated(self) -> bool:
        """Whether it is estimated from samples."""
        return self.cdf.estimated

    def __call__(self, contexts: Sequence[Any], *others: Any) -> RewardCdf:
        """The cdf of some contexts, found by their labels.

        Raises
        ------
        ValueError
            For a context without a label.
        """
        missing = [c for c in contexts if c not in self.labels]
        if missing:
            raise ValueError(
                f"the cdf knows {len(self.labels)} contexts and {missing[0]!r} is none of them; "
                "give RewardCdf the rewards of every context"
            )
        index = [self.labels.index(c) for c in contexts]
        xp = namespace(self.cdf.table.rewards) if self.cdf.table else np
        at = lambda x: xp.asarray(index, device=device(x))
        pick = lambda x: None if x is None else xp.take(x, at(x), axis=-1)
        assert self.cdf.table is not None
        table = _mapped(pick, self.cdf.table)
        return RewardCdf((len(index),), table, None, pick(self.cdf.size), self.cdf.tolerance)


Cdf = RewardCdf | CdfByContext | Callable[..., RewardCdf]
"""A cdf, or a callable from the contexts to one."""


def check_cdf(cdf: Any) -> None:
    """Refuse what is no cdf of a reward, and say how to get one."""
    if not (isinstance(cdf, RewardCdf) or callable(cdf)):
        raise ValueError(
            "the cdf of a reward is a RewardCdf, or a callable from the contexts to one, got "
            f"{type(cdf).__name__}; get it with exact.reward_cdf(base, reward) where the outcomes "
            "can be listed, with RewardCdf.estimate(rewards of draws of the base), or with "
            "RewardCdf.continuous(formula)"
        )


def place_of(cdf: Any, reward: LogPotential, y: Any, contexts: tuple[Any, ...]) -> Place:
    """Where the rewards of outcomes stand."""
    values = as_real(reward(own(y), *contexts), "the reward")
    return (cdf if isinstance(cdf, RewardCdf) else cdf(*contexts)).at(values)


def tolerance_of(cdf: Any, contexts: tuple[Any, ...]) -> float | int | None:
    """Within what rewards tie: as the cdf says, if there is one."""
    if isinstance(cdf, CdfByContext):
        return cdf.cdf.tolerance
    given = cdf if cdf is None or isinstance(cdf, RewardCdf) else cdf(*contexts)
    return None if given is None else given.tolerance


def is_estimated(cdf: Any) -> bool:
    """Whether a cdf has, or may have, standard errors."""
    return bool(getattr(cdf, "estimated", True))


def _with_own(place: Place, squares: Any, size: Array) -> Place:
    """The outcome itself counts as one more sample."""
    xp = namespace(place.log_cdf)
    log_others = xp.log(size) - xp.log1p(size)
    log_own = xp.broadcast_to(-xp.log1p(size), place.log_cdf.shape)
    more = lambda x: logsumexp(xp.stack([x + log_others, log_own]), axis=0)
    share, own = xp.exp(2 * log_others), xp.exp(2 * log_own)
    spread = Spread(
        share * xp.exp(squares.below), share * xp.exp(squares.at) + own,
        share * xp.exp(squares.above),
    )  # fmt: skip
    return Place(
        place.log_below + log_others, more(place.log_mass), place.log_above + log_others,
        more(place.log_cdf), spread,
    )  # fmt: skip


def _shaped(place: Place, shape: tuple[int, ...]) -> Place:
    return place.map(lambda x: namespace(x).reshape(x, shape))


def _mapped(function: Callable[[Array], Array], table: Table) -> Table:
    squares = None if table.squares is None else _each(function, table.squares)
    rewards, log_prob, width = (function(x) for x in table[:3])
    return Table(rewards, log_prob, width, _each(function, table.sums), squares)


def _each(function: Callable[[Array], Array], sums: Sums) -> Sums:
    return Sums(
        function(sums.at), function(sums.below), function(sums.above), function(sums.up_to),
        function(sums.from_on),
    )  # fmt: skip


def _flat(rewards: Array, log_prob: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Rewards and log-probabilities as (N, C), and the shape of the contexts."""
    if tuple(rewards.shape) != tuple(log_prob.shape) or not rewards.shape or 0 in rewards.shape:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)} and log-probabilities of shape "
            f"{tuple(log_prob.shape)}; both must be (N, *contexts), with outcomes on axis 0"
        )
    _no_nan(rewards)
    log_prob = host(log_prob)
    xp, shape = namespace(log_prob), tuple(rewards.shape[1:])
    if namespace(rewards) is not xp:
        rewards = _converter(log_prob)(rewards)
    flat = (rewards.shape[0], math.prod(shape))
    return xp.reshape(real(rewards), flat), xp.reshape(log_prob, flat), shape


def _no_nan(rewards: Array) -> None:
    plain = known(rewards)
    if plain is not None and (count := int(np.isnan(plain).sum())):
        raise ValueError(
            f"{count} of {plain.size} rewards are NaN; a rejected outcome has reward -inf, and a "
            "missing reward must be resolved before outcomes are ranked"
        )


def _converter(like: Array) -> Callable[[Array], Array]:
    xp = namespace(like)

    def convert(x: Array) -> Array:
        if namespace(x) is not xp:
            plain = known(x)
            if plain is None:
                raise ValueError(
                    "rewards and their cdf are of different libraries, and one is being traced by "
                    "jax.jit; make both in JAX"
                )
            x = xp.asarray(plain)
        return x.to(like.device) if is_torch_array(like) else x

    return convert


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _log(x: Array) -> Array:
    xp = namespace(x)
    positive = x > 0
    return xp.where(positive, xp.log(xp.where(positive, x, 1.0)), -math.inf)
