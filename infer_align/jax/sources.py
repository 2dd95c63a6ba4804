"""Targets and proposals in JAX as a `Source` for `infer_align.samplers`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infer_align import _supports
from infer_align._arguments import count
from infer_align._numerics import as_real
from infer_align.jax._checks import check_context_arguments, check_key, check_proposal
from infer_align.jax.numpyro import target as as_target
from infer_align.samplers import (
    Drawn,
    TokenStream,
    check_components,
    check_density_shape,
    mixture_log_weights,
)
from infer_align.targets import Target, add_potential, check_provides

__all__ = ["Mixture", "mixture", "source"]

SMALLEST, LARGEST = 16, 4096
"""Outcomes per context of a compiled call: powers of four between these."""


def source(
    key: jax.Array,
    target: Target | Callable[..., Any],
    proposal: Any = None,
    contexts: tuple[Any, ...] = (),
) -> "JaxSource":
    """A target and a proposal, to sample from with `infer_align.samplers`.

    Parameters
    ----------
    key : PRNG key
        Of all draws, and of the decisions of the samplers: equal keys give equal samples.
    target : NumPyro program or Target
        JAX code throughout: it is compiled, for few sizes of a batch.
    proposal : Distribution, or callable from contexts to one, optional
        What is drawn from: a NumPyro distribution over the target's outcomes, a fitted policy, a
        `mixture`. Default: the target's prior.
    contexts : tuple of arrays, shape (*contexts, ...)
        Arguments of a conditional target.

    Returns
    -------
    Source
        Log-densities are float64 whatever JAX's precision is, and where the proposal is the prior
        log P − log q is exactly the potential.

    Raises
    ------
    ValueError
        For a target without a density, or a proposal with other contexts than the target's; when
        drawn from, for log-densities of another shape than (n, *contexts).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import tilt
    >>> from infer_align.jax import source
    >>> target = tilt(dist.Categorical(probs=jnp.array([0.5, 0.5])), lambda y: 1.0 * y, beta=0.5)
    >>> drawn = source(jax.random.key(0), target).draw(4)
    >>> ((drawn.log_target - drawn.log_proposal) / 2 == drawn.outcomes).all().item()
    True
    """
    check_key(key)
    contexts = check_context_arguments(contexts)
    declared = as_target(target)
    check_provides(declared, frozenset({"log_density"}), "a sampler")
    return JaxSource(key, declared, _given(proposal, contexts), contexts)


class JaxSource:
    """What `source` returns; see `infer_align.samplers.Source`.

    Parameters
    ----------
    key : PRNG key
    target : Target
    proposal : Distribution or None
    contexts : tuple of arrays
    """

    def __init__(
        self, key: jax.Array, target: Target, proposal: Any, contexts: tuple[Any, ...]
    ) -> None:
        self.target, self.proposal, self.contexts = target, proposal, contexts
        self.name = target.name
        self.shape: tuple[int, ...] = tuple(target.given(*contexts).batch_shape)
        if tuple(self._distribution().batch_shape) != self.shape:
            raise ValueError(
                f"target {target.name!r} has contexts of shape {self.shape} and its proposal of "
                f"shape {tuple(self._distribution().batch_shape)}; give both the same contexts"
            )
        is_prior = proposal is None or proposal is target.prior
        self.log_bound: Any = target.log_bound if is_prior else None
        self._key, decisions = jax.random.split(key)
        seed = np.asarray(jax.random.bits(decisions, (4,), jnp.uint32))
        self.rng = np.random.default_rng(seed)
        self._calls = 0
        self._draw = jax.jit(self._drawn, static_argnums=1)
        self._score = jax.jit(self._terms)
        self._score_se = jax.jit(self._spread)
        self._score_proposal = jax.jit(lambda y: _supports.log_prob(self._distribution(), y))

    def draw(self, n: int) -> Drawn:
        """n fresh outcomes per context.

        Parameters
        ----------
        n : int

        Returns
        -------
        Drawn
        """
        n = count("n", n)
        outcomes, log_q, log_p = [], [], []
        for start in range(0, n, LARGEST):
            size = min(n - start, LARGEST)
            key = jax.random.fold_in(self._key, self._calls)
            self._calls += 1
            y, terms, log_proposal = self._draw(key, _bucket(size), self.contexts)
            prior, potential = (self._host(x, _bucket(size))[:size] for x in terms)
            drawn = prior if log_proposal is None else self._host(log_proposal, _bucket(size))
            outcomes.append(jax.tree.map(lambda x, size=size: np.asarray(x)[:size], y))
            log_q.append(drawn[:size])
            log_p.append(add_potential(prior, potential, self.name))
        joined = jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)), *outcomes)
        return Drawn(joined, np.concatenate(log_q), np.concatenate(log_p))

    def log_target(self, outcomes: Any) -> np.ndarray:
        """log P of outcomes.

        Parameters
        ----------
        outcomes : array or dict of arrays, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
            NumPy float64.
        """
        parts = []
        for y, size in _padded(outcomes):
            prior, potential = (self._host(x)[:size] for x in self._score(y, self.contexts))
            parts.append(add_potential(prior, potential, self.name))
        return np.concatenate(parts)

    def log_proposal(self, outcomes: Any) -> np.ndarray:
        """log q of outcomes.

        Parameters
        ----------
        outcomes : array or dict of arrays, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
            NumPy float64.
        """
        parts = [self._host(self._score_proposal(y))[:size] for y, size in _padded(outcomes)]
        return np.concatenate(parts)

    def log_target_se(self, outcomes: Any) -> np.ndarray | None:
        """Standard error of log P of outcomes, None unless the potential is an estimate.

        Parameters
        ----------
        outcomes : array or dict of arrays, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts), or None
            NumPy float64.
        """
        if self.target.log_potential_se is None:
            return None
        parts = [self._host(self._score_se(y, self.contexts))[:n] for y, n in _padded(outcomes)]
        return np.concatenate(parts)

    def tokens(self) -> TokenStream:
        """The proposal token by token.

        Returns
        -------
        TokenStream

        Raises
        ------
        ValueError
            If its outcomes are not token sequences.
        """
        from infer_align.jax.token_streams import token_stream

        return token_stream(self._distribution(), self.shape)

    def _distribution(self) -> Any:
        """The proposal."""
        return self.target.given(*self.contexts) if self.proposal is None else self.proposal

    def _drawn(self, key: jax.Array, n: int, contexts: tuple[Any, ...]) -> Any:
        proposal = self.target.given(*contexts) if self.proposal is None else self.proposal
        y = proposal.sample(key, (n,))
        log_proposal = None if self.proposal is None else proposal.log_prob(y)
        return y, self._terms(y, contexts), log_proposal

    def _terms(self, y: Any, contexts: tuple[Any, ...]) -> tuple[Any, Any]:
        """Log prior and log potential, added on the host."""
        log_prior = _supports.log_prob(self.target.given(*contexts), y)
        return log_prior, jnp.asarray(self.target.log_potential(y, *contexts))

    def _spread(self, y: Any, contexts: tuple[Any, ...]) -> Any:
        spread = self.target.log_potential_se
        assert spread is not None
        return jnp.asarray(spread(y, *contexts))

    def _host(self, x: Any, n: int | None = None) -> np.ndarray:
        """In NumPy float64, of shape (n, *contexts)."""
        host = np.asarray(as_real(x, f"a log-density of {self.name!r}"), dtype=np.float64)
        check_density_shape(host.shape, self, n)
        return host


@dataclass(frozen=True)
class Mixture:
    """A mixture of distributions over the same outcomes; see `mixture`.

    Parameters
    ----------
    components : tuple of Distribution
    log_weights : array, shape (components,)
        Normalised.
    """

    components: tuple[Any, ...]
    log_weights: Any

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the contexts."""
        return tuple(self.components[0].batch_shape)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> Any:
        """Outcomes, each of a component of its own.

        Parameters
        ----------
        key : PRNG key
        sample_shape : tuple of int

        Returns
        -------
        array or dict, shape (*sample_shape, *contexts, ...)
        """
        choice_key, *keys = jax.random.split(key, 1 + len(self.components))
        shape = (*sample_shape, *self.batch_shape)
        choice = jax.random.categorical(choice_key, jnp.asarray(self.log_weights), shape=shape)
        drawn = [
            d.sample(k, tuple(sample_shape)) for d, k in zip(self.components, keys, strict=True)
        ]

        def select(*x: Any) -> Any:
            out = x[0]
            for i in range(1, len(x)):
                chosen = choice.reshape(*shape, *(1,) * (out.ndim - len(shape)))
                out = jnp.where(chosen == i, x[i], out)
            return out

        return jax.tree.map(select, *drawn)

    def log_prob(self, value: Any) -> Any:
        """log Σ_k a_k q_k(y), exact.

        Parameters
        ----------
        value : array or dict, shape (n, *contexts, ...)

        Returns
        -------
        array, shape (n, *contexts)
        """
        terms = [
            a + _supports.log_prob(d, value)
            for a, d in zip(self.log_weights, self.components, strict=True)
        ]
        return jax.nn.logsumexp(jnp.stack(terms), axis=0)


def mixture(components: Sequence[Any], weights: Sequence[float]) -> Mixture:
    r"""A mixture of distributions as a proposal, :math:`q(y) = \sum_k a_k q_k(y)`.

    With the prior as one component log P/q of a tilt by rewards below 0 stays bounded, by the
    reciprocal of its share (defensive mixtures: Hesterberg 1995). NumPyro's mixtures need
    components of one family or of equal supports; here any distributions over the same outcomes
    do, programs' priors too.

    Parameters
    ----------
    components : sequence of Distribution
        With equal batch and event shapes.
    weights : sequence of float
        Positive; scaled to sum 1.

    Returns
    -------
    Mixture
        With ``sample`` and ``log_prob``.

    Raises
    ------
    ValueError
        For another number of weights, weights that are not positive, or unequal batch shapes.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align.jax import mixture
    >>> both = mixture([dist.BernoulliProbs(0.2), dist.BernoulliProbs(0.6)], [3.0, 1.0])
    >>> round(float(jnp.exp(both.log_prob(jnp.array(1)))), 6)       # (3·0.2 + 0.6)/4
    0.3
    """
    log_weights = mixture_log_weights(components, weights)
    check_components(components)
    return Mixture(tuple(components), log_weights)


def _given(proposal: Any, contexts: tuple[Any, ...]) -> Any:
    if proposal is None or hasattr(proposal, "log_prob"):
        return proposal
    check_proposal(proposal)
    return proposal(*contexts)


def _bucket(n: int) -> int:
    """The least compiled size that holds n: few sizes, for compiling outlasts drawing."""
    size = SMALLEST
    while size < n:
        size *= 4
    return size


def _padded(outcomes: Any):
    """Outcomes in parts of compiled sizes, filled up with their first, and the true sizes."""
    host = jax.tree.map(np.asarray, outcomes)
    n = len(jax.tree.leaves(host)[0])
    for start in range(0, n, LARGEST):
        size = min(n - start, LARGEST)
        rows = np.concatenate([np.arange(start, start + size),
                               np.full(_bucket(size) - size, start)])  # fmt: skip
        yield jax.tree.map(lambda x, rows=rows: x[rows], host), size
