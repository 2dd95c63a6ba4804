"""What a target's prior is made of, as far as exact solutions can use it."""

import importlib
import inspect
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from array_api_compat import is_torch_array

from infer_align._numerics import Array, concrete, logsumexp, namespace
from infer_align.targets import Target


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


def as_target(target: Any) -> Target:
    """A target, from one or from a Pyro or NumPyro program as it stands."""
    if isinstance(target, Target):
        return target
    if not callable(target):
        raise TypeError(f"needed is a Target or a program, got {type(target).__name__}")
    found = {"numpyro": "jax", "pyro": "torch"}
    sides = {found[root] for root in _mentioned(target) if root in found}
    if len(sides) != 1:
        raise ValueError(
            f"program {getattr(target, '__name__', target)!r} mentions "
            f"{'both' if sides else 'neither'} pyro and numpyro; say which with "
            "infer_align.torch.target(program) or infer_align.jax.target(program)"
        )
    # Not an import of a higher layer: only the caller's own program brings it.
    return importlib.import_module(f"infer_align.{sides.pop()}").target(target)


def _mentioned(program: Any) -> set[str]:
    """Root packages that a program's code names; if none of the two, those its helpers name."""
    seen: set[int] = set()
    roots: set[str] = set()
    level = [inspect.unwrap(program)]
    while level and roots.isdisjoint({"pyro", "numpyro"}):
        helpers: list[Any] = []
        for function in level:
            _read(function, roots, helpers, seen)
        level = helpers
    return roots


def _read(function: Any, roots: set[str], helpers: list[Any], seen: set[int]) -> None:
    """Add the root packages and the functions that one function's code names."""
    function = getattr(function, "func", function)  # functools.partial
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    names, codes = set(code.co_names), [code]
    while codes:
        inner = [c for c in codes.pop().co_consts if inspect.iscode(c)]
        names.update(name for c in inner for name in c.co_names)
        codes += inner
    cells = [c.cell_contents for c in function.__closure__ or () if _filled(c)]
    for value in [function.__globals__.get(name) for name in sorted(names)] + cells:
        module = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
        roots.add(str(module).partition(".")[0])
        if inspect.isfunction(value):
            helpers.append(value)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
