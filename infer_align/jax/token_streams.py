r"""Next-token log-probabilities of NumPyro policies, for particle filters.

The policies of `infer_align.jax.policies` and independent tokens, such as
``Categorical(...).expand([T]).to_event(1)``, are read token by token: of a hidden Markov model the
state is the filtering law of the hidden state, :math:`p(h_t | y_{1:t})`. A mixture of such is
read by its components side by side.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from infer_align._numerics import logsumexp
from infer_align.jax.numpyro import ProgramPrior
from infer_align.jax.policies import HiddenMarkov, TokenSequence
from infer_align.jax.sources import Mixture
from infer_align.samplers import TokenStream
from infer_align.samplers._mixture_stream import MixtureStream

__all__ = ["token_stream"]


def token_stream(distribution: Any, shape: tuple[int, ...] | None = None) -> TokenStream:
    """A distribution over token sequences, one token after the other.

    Parameters
    ----------
    distribution : Distribution
        A `memoryless`, `markov` or `hidden_markov` policy, or a categorical or Bernoulli
        distribution with its last batch axis made an event; the prior of a program whose only
        latent site is such; or a `mixture` of these. Its batch shape is the contexts', which the
        stream flattens.
    shape : tuple of int, optional
        Of the contexts, to check.

    Returns
    -------
    TokenStream

    Raises
    ------
    ValueError
        For any other distribution, other contexts, or a mixture of different token sequences.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import markov
    >>> from infer_align.jax.token_streams import token_stream
    >>> stay = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]]))
    >>> stream = token_stream(markov({"initial": jnp.zeros(2), "transition": stay}, length=3))
    >>> stream.start(1).shape, jnp.exp(stream.advance(jnp.array([[1]]))).round(4).tolist()
    ((1, 1, 2), [[[0.25, 0.75]]])
    """
    batch = tuple(distribution.batch_shape)
    if shape is not None and shape != batch:
        raise ValueError(
            f"the proposal has contexts of shape {batch}, the target of shape {shape}; give both "
            "the same contexts"
        )
    if isinstance(distribution, Mixture):
        streams = [token_stream(d, batch) for d in distribution.components]
        return MixtureStream(streams, distribution.log_weights, jax.jit)
    if not isinstance(distribution, ProgramPrior):
        return _stream(distribution)
    streams = []
    for index in np.ndindex(batch):
        one = jax.tree.map(lambda x, index=index: jnp.asarray(x)[index], distribution.contexts)
        site = ProgramPrior(distribution.program, one, distribution.name, 0).site()
        streams.append(_stream(site))
    return _joined(streams)


def _stream(distribution: Any) -> "_Stream":
    found = None
    if isinstance(distribution, TokenSequence):
        return _of_sequence(distribution)
    if isinstance(distribution, HiddenMarkov):
        tables = (distribution.initial, distribution.transition, distribution.emission)
        law = _Hidden(*(_flat(jax.nn.log_softmax(x), 1 + (i > 0)) for i, x in enumerate(tables)))
        return _Stream(law, distribution.length, distribution.vocabulary_size)
    if isinstance(distribution, dist.Independent):
        found = _of_independent(distribution)
    if found is None:
        raise ValueError(
            f"a {type(distribution).__name__} is not known here as a law of token sequences; "
            "sequential Monte Carlo needs a memoryless, Markov or hidden Markov policy, "
            "independent tokens (Categorical(...).expand([T]).to_event(1)), a mixture of these, or "
            "a CausalLM of infer_align.torch"
        )
    return found


def _joined(streams: list["_Stream"]) -> "_Stream":
    """One stream of the contexts of several."""
    first = streams[0]
    kinds = {(type(s._law), s.length, s.vocabulary_size, s.eos, s.pad) for s in streams}
    if len(kinds) > 1:
        raise ValueError("the program's token sequences are of another form in each context")
    join = lambda *x: jnp.concatenate(x, axis=first._law.axis)
    law = jax.tree.map(join, *(s._law for s in streams))
    return _Stream(law, first.length, first.vocabulary_size, first.eos, first.pad)


def _flat(table: jax.Array, event: int) -> jax.Array:
    """The contexts' axes as one."""
    return jnp.reshape(table, (-1, *table.shape[table.ndim - event :]))


def _of_sequence(policy: TokenSequence) -> "_Stream":
    log_initial = _flat(jax.nn.log_softmax(policy.initial), 1)
    sizes = policy.length, policy.vocabulary_size, policy.eos, policy.pad
    if policy.transition is None:
        return _Stream(_Independent(log_initial[None]), *sizes)
    return _Stream(_Markov(log_initial, _flat(jax.nn.log_softmax(policy.transition), 2)), *sizes)


def _of_independent(distribution: Any) -> "_Stream | None":
    """Of independent tokens that are the numbers 0, 1, ...; None if they are something else."""
    base = distribution.base_dist
    if distribution.reinterpreted_batch_ndims != 1 or len(distribution.event_shape) != 1:
        return None
    if not base.has_enumerate_support or base.event_shape:
        return None
    support = base.enumerate_support(expand=False)
    size, length = support.shape[0], distribution.event_shape[0]
    if not np.array_equal(np.asarray(support).ravel(), np.arange(size)):
        return None
    log_probs = jnp.moveaxis(base.log_prob(support), 0, -1)  # (*contexts, T, V)
    return _Stream(_Independent(jnp.moveaxis(_flat(log_probs, 2), 1, 0)), length, size)


class _Independent(NamedTuple):
    """Independent tokens: log-probabilities (T, C, V), or (1, C, V) for all positions alike."""

    log_tokens: jax.Array

    @property
    def axis(self) -> int:
        return 1

    def start(self, n: int) -> tuple[jax.Array, None]:
        return self._rows(0, n), None

    def advance(self, state: None, tokens: jax.Array, t: int) -> tuple[jax.Array, None]:
        return self._rows(min(t, len(self.log_tokens) - 1), len(tokens)), state

    def _rows(self, t: int, n: int) -> jax.Array:
        return jnp.broadcast_to(self.log_tokens[t], (n, *self.log_tokens.shape[1:]))


class _Markov(NamedTuple):
    """A Markov chain: initial (C, V) and transition (C, V, V)."""

    log_initial: jax.Array
    log_transition: jax.Array

    @property
    def axis(self) -> int:
        return 0

    def start(self, n: int) -> tuple[jax.Array, None]:
        return jnp.broadcast_to(self.log_initial, (n, *self.log_initial.shape)), None

    def advance(self, state: None, tokens: jax.Array, t: int) -> tuple[jax.Array, None]:
        return _rows_after(self.log_transition, tokens), state


class _Hidden(NamedTuple):
    """A hidden Markov model: (C, H), (C, H, H) and (C, H, V); its state is the predicted law."""

    log_initial: jax.Array
    log_transition: jax.Array
    log_emission: jax.Array

    @property
    def axis(self) -> int:
        return 0

    def start(self, n: int) -> tuple[jax.Array, jax.Array]:
        predicted = jnp.broadcast_to(self.log_initial, (n, *self.log_initial.shape))
        return _emitted(predicted, self.log_emission), predicted

    def advance(self, state: jax.Array, tokens: jax.Array, t: int) -> tuple[jax.Array, jax.Array]:
        predicted = _predicted(state, tokens, self.log_transition, self.log_emission)
        return _emitted(predicted, self.log_emission), predicted


@jax.jit
def _rows_after(table: jax.Array, tokens: jax.Array) -> jax.Array:
    return jax.vmap(lambda one, index: one[index], in_axes=(0, 1), out_axes=1)(table, tokens)


@jax.jit
def _emitted(predicted: jax.Array, log_emission: jax.Array) -> jax.Array:
    return logsumexp(predicted[..., None] + log_emission, axis=-2)


@jax.jit
def _predicted(
    predicted: jax.Array, tokens: jax.Array, log_transition: jax.Array, log_emission: jax.Array
) -> jax.Array:
    """log p(h_{t+1} | y_{1:t}) from log p(h_t | y_{1:t-1}) and y_t."""
    seen = _rows_after(jnp.swapaxes(log_emission, -1, -2), tokens)
    joint = logsumexp((predicted + seen)[..., None] + log_transition, axis=-2)
    total = logsumexp(joint, axis=-1, keepdims=True)
    return jnp.where(total > -jnp.inf, joint - total, log_transition[:, 0])


@jax.jit
def _chosen(state: Any, ancestors: jax.Array) -> Any:
    rows = lambda x: jax.vmap(lambda one, index: one[index], in_axes=1, out_axes=1)(x, ancestors)
    return jax.tree.map(rows, state)


class _Stream:
    """A `TokenStream` of one of the laws above."""

    def __init__(
        self, law: Any, length: int, vocabulary_size: int, eos: tuple[int, ...] = (), pad: int = 0
    ) -> None:
        self.length, self.vocabulary_size, self.eos, self.pad = length, vocabulary_size, eos, pad
        self._law, self._state, self._t = law, None, 0

    def start(self, n: int) -> jax.Array:
        """Log-probabilities of the first token, (n, C, V)."""
        self._t = 0
        log_probs, self._state = self._law.start(n)
        return log_probs

    def advance(self, tokens: Any, ancestors: np.ndarray | None = None) -> jax.Array:
        """Log-probabilities of the token after ``tokens``, (n, C, V)."""
        self._t += 1
        if ancestors is not None:
            self._state = _chosen(self._state, jnp.asarray(ancestors))
        known = jnp.clip(jnp.asarray(tokens), 0, self.vocabulary_size - 1)
        log_probs, self._state = self._law.advance(self._state, known, self._t)
        return log_probs
