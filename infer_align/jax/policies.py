r"""Policies on small outcome spaces: parameters → NumPyro ``Distribution``.

Each function takes the parameters first, so that with the rest fixed
(``functools.partial(markov, length=4)``) it is a policy for `fit`. Parameters are unnormalised
log-probabilities, of shape ``(*contexts, ...)``; the contexts are the batch shape, and
``log_prob`` of outcomes ``(n, *contexts, ...)`` has shape ``(n, *contexts)``.

A sequence ends at its first EOS, which it contains; later entries are padding and carry no
probability. A sequence cut at ``length`` is an outcome too, so probabilities sum to one:

.. math:: \log π(y) = \sum_{t ≤ \min(T, t_{EOS})} \log π(y_t | y_{t-1})
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Float
from numpyro.distributions import constraints

from infer_align._arguments import count
from infer_align._numerics import logsumexp
from infer_align.spaces import SequenceModel, Space

__all__ = [
    "HiddenMarkov",
    "Tabular",
    "TokenSequence",
    "hidden_markov",
    "markov",
    "memoryless",
    "tabular",
]


def tabular(
    logits: Float[Any, "*contexts outcomes"], *, space: Space | None = None
) -> dist.Distribution:
    """One logit for every outcome: the policy that can represent any distribution.

    Parameters
    ----------
    logits : array, shape (*contexts, N)
    space : Space, optional
        The N outcomes. Default: the integers 0, ..., N − 1 (a ``Categorical``).

    Returns
    -------
    Distribution
        With ``enumerate_support``.

    Raises
    ------
    ValueError
        If the space has another number of outcomes.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align import Space
    >>> from infer_align.jax import tabular
    >>> policy = tabular(jnp.log(jnp.array([0.1, 0.2, 0.7])), space=Space.sequences(2, 2, eos=1))
    >>> [round(float(p), 6) for p in jnp.exp(policy.log_prob(jnp.array([[0, 1], [1, 0]])))]
    [0.2, 0.7]
    """
    if space is None:
        return dist.CategoricalLogits(logits)
    return Tabular(logits, jnp.asarray(space.outcomes))


def memoryless(
    logits: Float[Any, "*contexts vocabulary"],
    *,
    length: int,
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
) -> dist.Distribution:
    """Independent, identically distributed tokens.

    Parameters
    ----------
    logits : array, shape (*contexts, V)
        Of every token.
    length : int
        Longest sequence, T.
    eos : int, tuple of int or None
        Tokens that end a sequence. None: all sequences have full length, and the distribution is
        ``Categorical(logits).expand([T]).to_event(1)``.
    pad : int
        Value of the entries after the first EOS.

    Returns
    -------
    Distribution
        Over sequences of shape (T,).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import memoryless
    >>> policy = memoryless(jnp.log(jnp.array([0.25, 0.75])), length=3, eos=0)
    >>> [round(float(p), 6) for p in jnp.exp(policy.log_prob(jnp.array([[1, 0, 0], [1, 1, 1]])))]
    [0.1875, 0.421875]
    """
    if eos is not None:
        return TokenSequence(logits, None, length, eos, pad)
    length = count("length", length)
    tokens = dist.CategoricalLogits(logits[..., None, :])
    return tokens.expand((*logits.shape[:-1], length)).to_event(1)


def markov(
    params: Mapping[str, Any],
    *,
    length: int,
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
) -> dist.Distribution:
    """First-order Markov chain of tokens.

    Parameters
    ----------
    params : mapping
        ``initial``, shape (*contexts, V), logits of the first token; and ``transition``, shape
        (*contexts, V, V), whose row v has the logits of the token after v. Zeros are uniform.
    length : int
        Longest sequence, T.
    eos : int, tuple of int or None
        Tokens that end a sequence. None: all sequences have full length.
    pad : int
        Value of the entries after the first EOS.

    Returns
    -------
    Distribution
        Over sequences of shape (T,).

    Raises
    ------
    ValueError
        For other keys, or shapes that do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import markov
    >>> stay = jnp.log(jnp.array([[0.75, 0.25], [0.25, 0.75]]))
    >>> policy = markov({"initial": jnp.zeros(2), "transition": stay}, length=2)
    >>> [round(float(p), 6) for p in jnp.exp(policy.log_prob(jnp.array([[0, 0], [1, 0]])))]
    [0.375, 0.125]
    """
    if set(params) != {"initial", "transition"}:
        raise ValueError(
            f"a Markov policy has parameters 'initial' and 'transition', got {sorted(params)}"
        )
    return TokenSequence(params["initial"], params["transition"], length, eos, pad)


def hidden_markov(params: Mapping[str, Any], *, length: int) -> dist.Distribution:
    """Hidden Markov model of tokens, its hidden states summed out.

    Parameters
    ----------
    params : mapping
        ``initial``, shape (*contexts, H), logits of the first hidden state; ``transition``, shape
        (*contexts, H, H), whose row h has the logits of the state after h; and ``emission``, shape
        (*contexts, H, V), whose row h has the logits of the token in state h.
    length : int
        Number of tokens, T.

    Returns
    -------
    Distribution
        Over sequences of shape (T,).

    Raises
    ------
    ValueError
        For other keys, or shapes that do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import hidden_markov
    >>> p = {"initial": [1.0, 0.0], "transition": [[0.5, 0.5], [0.5, 0.5]],
    ...      "emission": [[1.0, 0.0], [0.0, 1.0]]}
    >>> policy = hidden_markov({k: jnp.log(jnp.array(v) + 1e-12) for k, v in p.items()}, length=2)
    >>> [round(float(p), 6) for p in jnp.exp(policy.log_prob(jnp.array([[0, 0], [1, 0]])))]
    [0.5, 0.0]
    """
    if set(params) != {"initial", "transition", "emission"}:
        raise ValueError(
            "a hidden Markov policy has parameters 'initial', 'transition' and 'emission', got "
            f"{sorted(params)}"
        )
    return HiddenMarkov(params["initial"], params["transition"], params["emission"], length)


class Tabular(dist.Distribution):
    """Categorical distribution over listed outcomes; see `tabular`.

    Parameters
    ----------
    logits : array, shape (*contexts, N)
    outcomes : array, shape (N, ...)
        Every outcome once. Any other value has log-probability −inf.
    """

    pytree_data_fields = ("logits", "outcomes")
    has_enumerate_support = True

    def __init__(self, logits: Any, outcomes: Any, *, validate_args: bool | None = None) -> None:
        if jnp.ndim(logits) < 1 or logits.shape[-1] != outcomes.shape[0]:
            raise ValueError(
                f"logits of shape {tuple(jnp.shape(logits))} for {outcomes.shape[0]} outcomes; "
                "the last axis must have one logit an outcome"
            )
        self.logits, self.outcomes = logits, outcomes
        super().__init__(
            tuple(logits.shape[:-1]), tuple(outcomes.shape[1:]), validate_args=validate_args
        )

    @property
    def support(self) -> constraints.Constraint:
        """The box around the outcomes."""
        low, high = jnp.min(self.outcomes), jnp.max(self.outcomes)
        box = constraints.integer_interval(low, high)
        if not jnp.issubdtype(self.outcomes.dtype, jnp.integer):
            box = constraints.interval(low, high)
        return constraints.independent(box, len(self.event_shape))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Outcomes of shape (*sample_shape, *contexts, ...)."""
        shape = tuple(sample_shape) + self.batch_shape
        return self.outcomes[jax.random.categorical(key, self.logits, shape=shape)]

    def log_prob(self, value: Any) -> jax.Array:
        """Normalised log-probability, shape (*sample_shape, *contexts)."""
        value = jnp.asarray(value)
        leading = jnp.broadcast_shapes(
            value.shape[: value.ndim - len(self.event_shape)], self.batch_shape
        )
        value = jnp.broadcast_to(value, leading + self.event_shape)
        event = tuple(range(len(leading) + 1, len(leading) + 1 + len(self.event_shape)))
        same = jnp.expand_dims(value, len(leading)) == self.outcomes
        match = jnp.all(same, axis=event)
        log_prob = _look_up(jax.nn.log_softmax(self.logits), jnp.argmax(match, axis=-1)[..., None])
        return jnp.where(jnp.any(match, axis=-1), log_prob[..., 0], -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> jax.Array:  # noqa: FBT001, FBT002
        """All outcomes, shape (N, *contexts, ...) (contexts of size 1 unless expanded)."""
        return _enumerated(self, self.outcomes, expand=expand)


class TokenSequence(dist.Distribution):
    """Sequences of tokens, independent or Markov, that may end early; see `markov`.

    Parameters
    ----------
    initial : array, shape (*contexts, V)
        Logits of the first token (of all tokens without ``transition``).
    transition : array, shape (*contexts, V, V), or None
        Row v has the logits of the token after v. None: tokens are independent.
    length : int
        Longest sequence.
    eos : int, tuple of int or None
        Tokens that end a sequence.
    pad : int
        Value of the entries after the first EOS.
    """

    pytree_data_fields = ("initial", "transition")
    pytree_aux_fields = ("length", "eos", "pad")
    has_enumerate_support = True

    def __init__(
        self,
        initial: Any,
        transition: Any,
        length: int,
        eos: int | tuple[int, ...] | None = None,
        pad: int = 0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
        shape = tuple(jnp.shape(initial))
        if not shape:
            raise ValueError("logits need a last axis over the vocabulary, got a scalar")
        size = shape[-1]
        if transition is not None and tuple(transition.shape) != (*shape, size):
            raise ValueError(
                f"transition logits have shape {tuple(transition.shape)}; initial logits of "
                f"shape {shape} need {(*shape, size)}: (*contexts, from, to)"
            )
        length = count("length", length)
        if outside := [token for token in ends if not 0 <= token < size]:
            raise ValueError(f"eos {outside} lies outside the vocabulary 0..{size - 1}")
        self.initial, self.transition = initial, transition
        self.length, self.eos, self.pad = length, ends, pad
        super().__init__(shape[:-1], (length,), validate_args=validate_args)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, V."""
        return self.initial.shape[-1]

    @property
    def support(self) -> constraints.Constraint:
        """Token ids and the padding."""
        low, high = min(0, self.pad), max(self.vocabulary_size - 1, self.pad)
        return constraints.independent(constraints.integer_interval(low, high), 1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Sequences of shape (*sample_shape, *contexts, T), padded after the first EOS."""
        shape = tuple(sample_shape) + self.batch_shape
        first_key, later_key = jax.random.split(key)
        first = jax.random.categorical(first_key, self.initial, shape=shape)

        def step(previous: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            token = jax.random.categorical(key, self._logits_after(previous), shape=shape)
            return token, token

        _, later = jax.lax.scan(step, first, jax.random.split(later_key, self.length - 1))
        tokens = jnp.moveaxis(jnp.concatenate([first[None], later]), 0, -1)
        return jnp.where(self._alive(tokens), tokens, self.pad)

    def log_prob(self, value: Any) -> jax.Array:
        """Normalised log-probability, shape (*sample_shape, *contexts); padding is not read."""
        value = jnp.asarray(value)
        if value.shape[-1:] != (self.length,):
            raise ValueError(
                f"sequences have shape {tuple(value.shape)}; the last axis must be the length, "
                f"{self.length}"
            )
        leading = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = jnp.broadcast_to(value, (*leading, self.length))
        known = (value >= 0) & (value < self.vocabulary_size)
        tokens = jnp.where(known, value, 0)
        per_token = jnp.where(known, self._log_prob_per_token(tokens), -jnp.inf)
        return jnp.sum(jnp.where(self._alive(value), per_token, 0.0), axis=-1)

    def sequence_model(self) -> SequenceModel:
        """Its sequences and their factors, for exact solutions; of a single context."""
        ends, pad = self.eos, self.pad
        log_initial, size = jax.nn.log_softmax(self.initial), self.vocabulary_size
        if self.transition is None:
            shape = (*self.batch_shape, self.length, size)
            log_tokens = jnp.broadcast_to(log_initial[..., None, :], shape)
            return SequenceModel(size, self.length, ends, pad, log_tokens)
        log_transition = jax.nn.log_softmax(self.transition)
        return SequenceModel(size, self.length, ends, pad, None, log_initial, log_transition)

    def enumerate_support(self, expand: bool = True) -> jax.Array:  # noqa: FBT001, FBT002
        """All sequences, shape (N, *contexts, T) (contexts of size 1 unless expanded)."""
        space = Space.sequences(self.vocabulary_size, self.length, eos=self.eos, pad=self.pad)
        return _enumerated(self, jnp.asarray(space.outcomes), expand=expand)

    def _alive(self, tokens: jax.Array) -> jax.Array:
        """Positions up to the first EOS, included."""
        end = jnp.isin(tokens, jnp.asarray(self.eos, dtype=tokens.dtype))
        return jnp.cumsum(end, axis=-1) - end == 0

    def _logits_after(self, token: jax.Array) -> jax.Array:
        """Logits of the next token, shape (*token.shape, V)."""
        if self.transition is None:
            return self.initial
        return _row(self.transition, token)

    def _log_prob_per_token(self, tokens: jax.Array) -> jax.Array:
        log_initial = jax.nn.log_softmax(self.initial)
        if self.transition is None:
            return _look_up(log_initial, tokens)
        first = _look_up(log_initial, tokens[..., :1])
        size = self.vocabulary_size
        pairs = jnp.reshape(jax.nn.log_softmax(self.transition), (*self.batch_shape, size * size))
        later = _look_up(pairs, tokens[..., :-1] * size + tokens[..., 1:])
        return jnp.concatenate([first, later], axis=-1)


class HiddenMarkov(dist.Distribution):
    """Sequences of tokens emitted by hidden states; see `hidden_markov`.

    Parameters
    ----------
    initial : array, shape (*contexts, H)
        Logits of the first hidden state.
    transition : array, shape (*contexts, H, H)
        Row h has the logits of the state after h.
    emission : array, shape (*contexts, H, V)
        Row h has the logits of the token in state h.
    length : int
        Number of tokens.
    """

    pytree_data_fields = ("initial", "transition", "emission")
    pytree_aux_fields = ("length",)
    has_enumerate_support = True

    def __init__(
        self,
        initial: Any,
        transition: Any,
        emission: Any,
        length: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = tuple(jnp.shape(initial))
        states = shape[-1] if shape else 0
        fits = states and tuple(transition.shape) == (*shape, states)
        if not fits or tuple(emission.shape[:-1]) != shape:
            raise ValueError(
                f"initial logits of shape {shape} with transition {tuple(transition.shape)} and "
                f"emission {tuple(emission.shape)}; needed are (*contexts, H), (*contexts, H, H) "
                "and (*contexts, H, V)"
            )
        length = count("length", length)
        self.initial, self.transition, self.emission = initial, transition, emission
        self.length = length
        super().__init__(shape[:-1], (length,), validate_args=validate_args)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, V."""
        return self.emission.shape[-1]

    @property
    def support(self) -> constraints.Constraint:
        """Token ids."""
        return constraints.independent(constraints.integer_interval(0, self.vocabulary_size - 1), 1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Sequences of shape (*sample_shape, *contexts, T)."""
        shape = tuple(sample_shape) + self.batch_shape
        first_key, path_key, token_key = jax.random.split(key, 3)
        first = jax.random.categorical(first_key, self.initial, shape=shape)

        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jax.random.categorical(key, _row(self.transition, state), shape=shape)
            return state, state

        _, later = jax.lax.scan(step, first, jax.random.split(path_key, self.length - 1))
        states = jnp.moveaxis(jnp.concatenate([first[None], later]), 0, -1)
        emission = jnp.expand_dims(self.emission, -3)  # the same at every position
        return jax.random.categorical(token_key, _row(emission, states))

    def log_prob(self, value: Any) -> jax.Array:
        """Normalised log-probability by the forward recursion, (*sample_shape, *contexts)."""
        value = jnp.asarray(value)
        if value.shape[-1:] != (self.length,):
            raise ValueError(
                f"sequences have shape {tuple(value.shape)}; the last axis must be the length, "
                f"{self.length}"
            )
        leading = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = jnp.broadcast_to(value, (*leading, self.length))
        known = jnp.all((value >= 0) & (value < self.vocabulary_size), axis=-1)
        tokens = jnp.moveaxis(jnp.where(known[..., None], value, 0), -1, 0)
        log_emission = jax.nn.log_softmax(self.emission)
        log_transition = jax.nn.log_softmax(self.transition)

        def emitted(token: jax.Array) -> jax.Array:
            table = jnp.broadcast_to(log_emission, (*leading, *log_emission.shape[-2:]))
            return jnp.take_along_axis(table, token[..., None, None], axis=-1)[..., 0]

        def step(forward: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
            # Where a hidden state is impossible, JAX's own logsumexp has a NaN gradient.
            moved = logsumexp(forward[..., :, None] + log_transition, axis=-2)
            return moved + emitted(token), None

        start = jax.nn.log_softmax(self.initial) + emitted(tokens[0])
        last, _ = jax.lax.scan(step, start, tokens[1:])
        return jnp.where(known, logsumexp(last, axis=-1), -jnp.inf)

    def sequence_model(self) -> SequenceModel:
        """Its sequences and their factors, for exact solutions; of a single context."""
        log_initial, log_transition, log_emission = (
            jax.nn.log_softmax(x) for x in (self.initial, self.transition, self.emission)
        )
        return SequenceModel(
            self.vocabulary_size,
            self.length,
            log_initial=log_initial,
            log_transition=log_transition,
            log_emission=log_emission,
        )

    def enumerate_support(self, expand: bool = True) -> jax.Array:  # noqa: FBT001, FBT002
        """All sequences, shape (N, *contexts, T) (contexts of size 1 unless expanded)."""
        space = Space.sequences(self.vocabulary_size, self.length)
        return _enumerated(self, jnp.asarray(space.outcomes), expand=expand)


def _row(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of table (*contexts, H, K) at index (*samples, *contexts), shape (*index.shape, K)."""
    table = jnp.expand_dims(table, tuple(range(index.ndim + 2 - table.ndim)))
    return jnp.take_along_axis(table, index[..., None, None], axis=-2)[..., 0, :]


def _look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Entries of table (*contexts, N) at index (*samples, *contexts, k)."""
    table = jnp.expand_dims(table, tuple(range(index.ndim - table.ndim)))
    return jnp.take_along_axis(table, index, axis=-1)


def _enumerated(distribution: dist.Distribution, outcomes: jax.Array, *, expand: bool) -> jax.Array:
    batch, (n, *event) = distribution.batch_shape, outcomes.shape
    spread = jnp.reshape(outcomes, (n, *(1,) * len(batch), *event))
    return jnp.broadcast_to(spread, (n, *batch, *event)) if expand else spread
