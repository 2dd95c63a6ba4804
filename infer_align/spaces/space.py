"""`Space`: sums over all outcomes."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj
from jaxtyping import Float

from infer_align import _supports
from infer_align._numerics import (
    Array,
    check_defined,
    concrete,
    greatest,
    logsumexp,
    namespace,
    normalised,
)
from infer_align.divergences import FDivergence
from infer_align.spaces.outcomes import (
    Outcomes,
    all_sequences,
    check_distinct,
    first_missing,
    positions,
    repeated,
)


class Solution(NamedTuple):
    """What there is to know about an enumerated target; see `Space.solve`.

    ``log_prob`` has shape ``(N, *contexts)``, all others ``(*contexts)``, in nats.
    """

    log_z: Array
    """log Σ exp(log density)."""
    log_prob: Array
    """The normalised target, log p."""
    entropy: Array
    """−E_p[log p]."""
    expected_log_potential: Array
    """E_p[log potential]: E_p[reward]/β for a tilt."""
    kl_to_prior: Array
    """KL(p‖prior) = E_p[log potential] − log Z."""


@dataclass(frozen=True)
class Space:
    """All outcomes of a small sample space, in a fixed order.

    Parameters
    ----------
    outcomes : array, shape (N, ...), or dict of such arrays
        Every outcome once. NumPy, JAX or torch; the methods work in the same library. A dict has
        the values of several named sites: row i of each is outcome i.

    Raises
    ------
    ValueError
        If an outcome is listed twice (its mass would count twice) or none is, or if sites have
        different numbers of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.spaces import Space
    >>> space = Space(np.arange(3))
    >>> log_prior, reward = np.log([0.5, 0.3, 0.2]), np.array([0.0, 1.0, -np.inf])
    >>> log_density = log_prior + reward
    >>> float(np.round(space.log_z(log_density), 6))  # log(0.5 + 0.3 e)
    0.274205
    >>> np.round(np.exp(space.log_target(log_density)), 4)
    array([0.3801, 0.6199, 0.    ])
    >>> pairs = Space({"style": np.array([0, 0, 1]), "y": np.array([[0, 1], [1, 1], [1, 0]])})
    >>> len(pairs), pairs.index({"style": np.array([1]), "y": np.array([[1, 0]])}).tolist()
    (3, [2])
    """

    outcomes: Outcomes

    def __post_init__(self) -> None:
        check_distinct(self.outcomes)

    def __len__(self) -> int:
        return self._first.shape[0]

    @property
    def _first(self) -> Array:
        """The outcomes, or those of their first site."""
        sites = self.outcomes
        return next(iter(sites.values())) if isinstance(sites, dict) else sites

    @classmethod
    def product(cls, *sizes: int, xp: Any = np) -> "Space":
        """All combinations of categorical variables, the last varying fastest.

        Parameters
        ----------
        *sizes : int
            Number of categories of each variable.
        xp : module
            Array library of the outcomes: ``numpy``, ``jax.numpy`` or ``torch``.

        Returns
        -------
        Space
            Outcomes of shape ``(Π sizes, len(sizes))``.

        Examples
        --------
        >>> from infer_align.spaces import Space
        >>> Space.product(2, 3).outcomes.tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
        """
        rows = np.indices(sizes).reshape(len(sizes), -1).T
        return cls(xp.asarray(rows))

    @classmethod
    def sequences(
        cls,
        vocabulary_size: int,
        length: int,
        *,
        eos: int | tuple[int, ...] | None = None,
        pad: int = 0,
        xp: Any = np,
    ) -> "Space":
        """All token sequences, each ending at its first EOS or cut at ``length``.

        Parameters
        ----------
        vocabulary_size : int
            Tokens are 0, ..., vocabulary_size − 1.
        length : int
            Longest sequence; a sequence without EOS has exactly this length.
        eos : int, tuple of int or None
            Tokens that end a sequence (kept in it). None: all sequences have full length.
        pad : int
            Value of the entries after the first EOS; may be any integer, EOS included.
        xp : module
            Array library of the outcomes: ``numpy``, ``jax.numpy`` or ``torch``.

        Returns
        -------
        Space
            Outcomes of shape ``(N, length)``, in lexicographic order before padding.

        Examples
        --------
        >>> from infer_align.spaces import Space
        >>> len(Space.sequences(5, 4, eos=0))
        341
        >>> Space.sequences(2, 2, eos=1, pad=-1).outcomes.tolist()
        [[0, 0], [0, 1], [1, -1]]
        """
        ends = () if eos is None else (eos,) if isinstance(eos, int) else eos
        return cls(xp.asarray(all_sequences(vocabulary_size, length, ends, pad)))

    def index(self, outcomes: Outcomes) -> np.ndarray:
        """Position in this space of each sampled outcome, as NumPy integers.

        Parameters
        ----------
        outcomes : array, shape (*shape, *event), or dict of such arrays
            Outcomes of this space, with any leading shape.

        Returns
        -------
        numpy.ndarray of int, shape (*shape)
            ``space.outcomes[index] == outcomes``.

        Raises
        ------
        ValueError
            If an outcome is not in the space.

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align.spaces import Space
        >>> Space.product(2, 3).index(np.array([[1, 0], [0, 2]])).tolist()
        [3, 2]
        """
        found = positions(outcomes, self.outcomes)
        if (unknown := found < 0).any():
            raise ValueError(
                f"{unknown.sum()} of {found.size} outcomes are not in this space, the first: "
                f"{first_missing(outcomes, found)}"
            )
        return found

    def log_prob(self, distribution: Any, *, tolerance: float = 1e-5) -> Array:
        """Normalised log-probabilities of all outcomes, checked to sum to one.

        Parameters
        ----------
        distribution : Pyro or NumPyro Distribution
            Its batch shape is the shape of the contexts.
        tolerance : float
            Largest accepted |Σ exp(log_prob) − 1|; ``math.inf`` skips the check.

        Returns
        -------
        array, shape (N, *contexts)
            log π(y) for every outcome y.

        Raises
        ------
        ValueError
            If the probabilities do not sum to one: the space misses outcomes of the
            distribution, or lists outcomes that it counts as one.

        Examples
        --------
        >>> import torch
        >>> from pyro.distributions import Categorical
        >>> from infer_align.spaces import Space
        >>> coin = Categorical(probs=torch.tensor([0.25, 0.75]))
        >>> Space(torch.arange(2)).log_prob(coin).exp().tolist()
        [0.25, 0.75]
        """
        outcomes = self._for_contexts(tuple(distribution.batch_shape))
        log_prob = _supports.log_prob(distribution, outcomes)
        self._check_sum(log_prob, tolerance, type(distribution).__name__)
        return log_prob

    def log_density(self, target: Any, *contexts: Any) -> Array:
        """Unnormalised log density of every outcome, shape ``(N, *contexts)``.

        Parameters
        ----------
        target : Target or array
            A target, or its log densities themselves, shape ``(N, *contexts)``.
        *contexts : Any
            What the target's program is conditioned on.
        """
        return self._of_target(target, "log_density", contexts)

    def log_potential(self, target: Any, *contexts: Any) -> Array:
        """Log potential of every outcome, shape ``(N, *contexts)``; see `log_density`."""
        return self._of_target(target, "log_potential", contexts)

    def log_z(self, target: Any, *contexts: Any) -> Array:
        """Log normalising constant ``log Σ exp(log_density)``, shape ``(*contexts)``.

        ``-inf`` where the target accepts no outcome. Parameters as in `log_density`.
        """
        return logsumexp(self.log_density(target, *contexts), axis=0)

    def log_target(self, target: Any, *contexts: Any) -> Array:
        """Normalised target ``log p = log_density − log_z``, shape ``(N, *contexts)``.

        Raises
        ------
        ValueError
            If the target accepts no outcome of a context.
        """
        log_prob, log_z = normalised(self.log_density(target, *contexts))
        xp = namespace(log_z)
        empty = int(xp.sum(xp.astype(log_z == -math.inf, xp.int32)))
        if empty:
            raise ValueError(
                f"the target accepts none of the {len(self)} outcomes in {empty} of "
                f"{math.prod(log_z.shape)} contexts, so it has no distribution there; relax "
                "its constraint"
            )
        return log_prob

    def expectation(self, values: Array, log_prob: Float[Any, "n *contexts"]) -> Array:
        """Exact expectation Σ exp(log_prob)·values; outcomes of probability 0 do not count.

        Parameters
        ----------
        values : array, shape (N,) or (N, *contexts)
            Any function of the outcomes, ``±inf`` allowed.
        log_prob : array, shape (N, *contexts)
            Normalised log-probabilities.

        Returns
        -------
        array, shape (*contexts)

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align.spaces import Space
        >>> log_prob = np.array([np.log(0.25), np.log(0.75), -np.inf])
        >>> float(Space(np.arange(3)).expectation(np.array([0.0, 4.0, np.inf]), log_prob))
        3.0
        """
        self._check_length(log_prob, "log_prob")
        self._check_length(values, "values")
        xp = namespace(values, log_prob)
        extra = len(log_prob.shape) - len(values.shape)
        values = xp.reshape(values, (*values.shape, *(1,) * extra))
        possible = log_prob > -math.inf
        terms = xp.exp(log_prob) * xp.where(possible, values, 0.0)
        return xp.sum(terms, axis=0)

    def divergence(
        self,
        divergence: FDivergence,
        log_policy: Float[Any, "n *contexts"],
        log_target: Float[Any, "n *contexts"],
        *,
        tolerance: float = 1e-5,
    ) -> Array:
        """Exact f-divergence of two normalised log-probability vectors, checked to be so.

        Parameters
        ----------
        divergence : FDivergence
            From `infer_align.divergences`.
        log_policy, log_target : array, shape (N, *contexts)
            Normalised log-probabilities in nats.
        tolerance : float
            Largest accepted |Σ exp(log_prob) − 1|; ``math.inf`` skips the check.

        Returns
        -------
        array, shape (*contexts)

        Examples
        --------
        >>> import numpy as np
        >>> from infer_align import divergences
        >>> from infer_align.spaces import Space
        >>> policy, target = np.log([0.25, 0.75]), np.log([0.5, 0.5])
        >>> kl = Space(np.arange(2)).divergence(divergences.forward_kl, policy, target)
        >>> round(float(kl), 6)
        0.143841
        """
        self._check_sum(log_policy, tolerance, "log_policy")
        self._check_sum(log_target, tolerance, "log_target")
        return divergence(log_policy, log_target)

    def solve(self, target: Any, *contexts: Any) -> Solution:
        r"""Solve a target exactly: its log Z, its law, and what it costs.

        .. math:: KL(p‖prior) = E_p[\log potential] - \log Z

        Parameters
        ----------
        target : Target
            With ``log_density`` and ``log_potential``.
        *contexts : Any
            What the target's program is conditioned on.

        Returns
        -------
        Solution
            ``log_z``, ``log_prob``, ``entropy``, ``expected_log_potential``, ``kl_to_prior``.

        Raises
        ------
        ValueError
            If the target accepts no outcome of a context.
        """
        log_density = self.log_density(target, *contexts)
        log_prob = self.log_target(log_density)
        log_z = logsumexp(log_density, axis=0)
        potential = self.log_potential(target, *contexts)
        offset = greatest(potential)
        expected = self.expectation(potential - offset, log_prob)
        return Solution(
            log_z=log_z,
            log_prob=log_prob,
            entropy=-self.expectation(log_prob, log_prob),
            expected_log_potential=expected + offset,
            kl_to_prior=expected - (log_z - offset),
        )

    def _of_target(self, target: Any, method: str, contexts: tuple[Any, ...]) -> Array:
        """``target.log_density`` or ``target.log_potential`` of every outcome and context."""
        if is_array_api_obj(target):
            values = target
        else:
            shape = tuple(target.given(*contexts).batch_shape) if contexts else ()
            values = getattr(target, method)(self._for_contexts(shape), *contexts)
        self._check_length(values, method)
        name = f"the {method.replace('_', '-')} of target {getattr(target, 'name', 'values')!r}"
        return check_defined(values, name)

    def _for_contexts(self, shape: tuple[int, ...]) -> Outcomes:
        """Outcomes repeated for every context, ``(N, *contexts, *event)``."""
        if isinstance(self.outcomes, dict):
            return {name: repeated(values, shape) for name, values in self.outcomes.items()}
        return repeated(self.outcomes, shape)

    def _check_length(self, values: Array, name: str) -> None:
        if not values.shape or values.shape[0] != len(self):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; its axis 0 must list the "
                f"{len(self)} outcomes of the space"
            )

    def _check_sum(self, log_prob: Array, tolerance: float, name: str) -> None:
        self._check_length(log_prob, name)
        if math.isinf(tolerance):
            return
        known = concrete(log_prob)
        values = log_prob if known is None else known
        xp = namespace(values)
        worst = float(xp.max(xp.abs(xp.sum(xp.exp(values), axis=0) - 1)))
        if not worst <= tolerance:  # NaN fails, too
            raise ValueError(
                f"the probabilities of {name} over the {len(self)} outcomes miss 1 by {worst:.3g} "
                f"(tolerance {tolerance:g}); check that the space lists every outcome once, in "
                "the distribution's form (padding after EOS), or pass tolerance=math.inf"
            )
