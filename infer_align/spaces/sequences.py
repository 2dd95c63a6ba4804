"""Token sequences: their number, the factors of a distribution over them, and listed supports."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from array_api_compat import is_torch_array

from infer_align._numerics import Array, concrete, logsumexp, namespace
from infer_align.spaces.outcomes import all_sequences


class SequenceModel(NamedTuple):
    """A prior over token sequences: all of them, and their probabilities where they factorise."""

    vocabulary_size: int
    """k."""
    length: int
    """m, the longest; shorter ones end at an EOS and are padded."""
    eos: tuple[int, ...] = ()
    pad: int = 0
    log_tokens: Array | None = None
    """Independent tokens: log-probabilities by position, shape (m, k)."""
    log_initial: Array | None = None
    """Markov: of the first token, shape (k,)."""
    log_transition: Array | None = None
    """Markov: row v has the token after v, shape (k, k)."""
    log_emission: Array | None = None
    """Hidden Markov: of the tokens in each hidden state, shape (h, k); the two above are then of
    hidden states."""
    values: Array | None = None
    """The outcome's entry for each token, shape (k,); None: the token itself."""

    @property
    def memoryless(self) -> bool:
        """Whether tokens are independent, identically distributed, and as many as the length."""
        if self.log_tokens is None or self.eos:
            return False
        known = concrete(self.log_tokens)
        if known is None:
            raise ValueError(
                "whether tokens are identically distributed is not known inside jax.jit; solve "
                "under jax.grad without jit"
            )
        return bool((known == known[:1]).all())

    def count(self) -> int:
        """Number of sequences."""
        k, m, ends = self.vocabulary_size, self.length, len(self.eos)
        if not ends:
            return k**m
        on = k - ends
        return ends * sum(on**t for t in range(m)) + on**m

    @property
    def like(self) -> Array:
        """An array of the distribution's library, of its device and precision."""
        known = (self.log_tokens, self.log_initial, self.values)
        return next(x for x in known if x is not None)

    def first(self) -> np.ndarray:
        """The tokens (1, m) of the sequence that a list of all begins with."""
        tokens = np.zeros((1, self.length), dtype=np.int64)
        if 0 in self.eos:
            tokens[:, 1:] = self.pad
        return tokens

    def outcomes(self, tokens: np.ndarray, like: Array) -> Array:
        """Outcomes of the target's library from token ids (..., m)."""
        if is_torch_array(like):
            like_values = namespace(like).asarray(tokens, device=like.device)
        else:
            like_values = namespace(like).asarray(tokens)
        if self.values is None:
            return like_values
        xp = namespace(like)
        flat = xp.take(self.values, xp.reshape(like_values, (-1,)), axis=0)
        return xp.reshape(flat, tokens.shape)


@runtime_checkable
class HasSequenceModel(Protocol):
    """A distribution over token sequences that says so."""

    def sequence_model(self) -> SequenceModel:
        """Its sequences, and their factors where there are any."""
        ...


@runtime_checkable
class HasSite(Protocol):
    """The prior of a program: it knows the distribution of its only latent site."""

    def site(self) -> Any:
        """That distribution."""
        ...


@runtime_checkable
class Enumerable(Protocol):
    """A Pyro or NumPyro distribution that lists its support."""

    has_enumerate_support: bool
    batch_shape: Any
    event_shape: Any

    def enumerate_support(self, expand: bool) -> Any:  # noqa: FBT001
        """The support on axis 0."""
        ...

    def log_prob(self, value: Any) -> Any:
        """Log-probabilities."""
        ...


@runtime_checkable
class HasBase(Protocol):
    """``Independent``: batch axes of a base distribution taken as the event's."""

    base_dist: Any
    reinterpreted_batch_ndims: int


@runtime_checkable
class HasHiddenStates(Protocol):
    """Pyro's ``DiscreteHMM``: a transition comes before each observation, the first included."""

    initial_logits: Any
    transition_logits: Any
    observation_dist: Any


def sequence_model(distribution: Any) -> SequenceModel | None:
    """The sequence model of a distribution, or None if it is none that is known."""
    if isinstance(distribution, HasSequenceModel):
        return distribution.sequence_model()
    if isinstance(distribution, HasHiddenStates):
        return _hidden(distribution, tuple(distribution.event_shape))  # type: ignore[attr-defined]
    if not isinstance(distribution, HasBase) or len(distribution.event_shape) != 1:  # type: ignore[attr-defined]
        return None
    base = distribution.base_dist
    if not isinstance(base, Enumerable) or not base.has_enumerate_support or base.event_shape:
        return None
    if not base.batch_shape or distribution.reinterpreted_batch_ndims != 1:
        return None
    support = base.enumerate_support(expand=False)
    xp = namespace(support)
    size, length = int(support.shape[0]), int(base.batch_shape[-1])
    plain = xp.reshape(support, (-1,))
    if len(base.batch_shape) > 1:  # several contexts: all that is used is the list of sequences
        return SequenceModel(size, length, values=plain)
    log_tokens = xp.permute_dims(base.log_prob(support), (1, 0))
    return SequenceModel(size, length, log_tokens=log_tokens, values=_values(plain))


def _values(support: Array) -> Array | None:
    """None if the outcomes are the token ids themselves."""
    known = concrete(support)
    if known is None or not np.issubdtype(known.dtype, np.integer):
        return support
    return None if (known == np.arange(len(known))).all() else support


def _hidden(distribution: HasHiddenStates, event_shape: tuple[int, ...]) -> SequenceModel | None:
    """Of a hidden Markov model whose parameters do not change with time or context."""
    observed, transition = distribution.observation_dist, distribution.transition_logits
    xp = namespace(transition)
    one_model = len(event_shape) == 1 and len(transition.shape) == 2
    if not one_model or not isinstance(observed, Enumerable) or len(observed.batch_shape) != 1:
        return None
    if not observed.has_enumerate_support or tuple(observed.event_shape):
        return None
    support = observed.enumerate_support(expand=False)
    log_emission = xp.permute_dims(observed.log_prob(support), (1, 0))
    plain = xp.reshape(support, (-1,))
    size = int(log_emission.shape[1])
    rows = transition - logsumexp(transition, axis=1, keepdims=True)
    initial = distribution.initial_logits - logsumexp(distribution.initial_logits, axis=0)
    first = logsumexp(initial[:, None] + rows, axis=0)
    return SequenceModel(
        size, event_shape[0], log_initial=first, log_transition=rows, log_emission=log_emission,
        values=_values(plain),
    )  # fmt: skip


def listed_sequences(model: SequenceModel) -> Array:
    """Every sequence, as outcomes of the distribution's library."""
    tokens = all_sequences(model.vocabulary_size, model.length, model.eos, model.pad)
    return model.outcomes(tokens, model.like)


def listed_support(distribution: Any) -> Array | None:
    """Every outcome of a distribution that lists them itself, or None."""
    if isinstance(distribution, HasSequenceModel | HasBase) or not isinstance(
        distribution, Enumerable
    ):
        return None
    if not distribution.has_enumerate_support:
        return None
    support = distribution.enumerate_support(expand=False)
    event = tuple(distribution.event_shape)
    return namespace(support).reshape(support, (support.shape[0], *event))
