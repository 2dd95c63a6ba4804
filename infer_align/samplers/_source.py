"""What a sampler needs of a proposal and a target; the backends provide it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from infer_align._numerics import Array


class Drawn(NamedTuple):
    """Draws y ~ q and their log-densities in NumPy float64, of shape (n, *contexts)."""

    outcomes: Any
    """(n, *contexts, ...) in the library of the proposal, or a dict of such by site."""
    log_proposal: Float[np.ndarray, "n *contexts"]
    """log q(y), normalised."""
    log_target: Float[np.ndarray, "n *contexts"]
    """log P(y), up to the target's constant; ``-inf`` for a rejected outcome."""


@runtime_checkable
class TokenStream(Protocol):
    """Next-token log-probabilities of the proposal, for n particles in each of C contexts.

    The contexts are flattened to one axis. Logits and tokens are in the library of the model.
    """

    length: int
    """Most tokens of an outcome, T."""
    vocabulary_size: int
    eos: tuple[int, ...]
    """Tokens that end an outcome; () if all have T tokens."""
    pad: int
    """What fills an outcome after its end."""

    def start(self, n: int) -> Array:
        """Log-probabilities of the first token, shape (n, C, V), normalised over V."""
        ...

    def advance(self, tokens: Array, ancestors: np.ndarray | None = None) -> Array:
        """Log-probabilities of the token after ``tokens``, shape (n, C, V).

        Parameters
        ----------
        tokens : array of int, shape (n, C)
            What each particle just appended. A particle that has ended may append anything.
        ancestors : array of int, shape (n, C), optional
            Resampling that happened before: particle i of context c goes on from the history of
            particle ``ancestors[i, c]`` of that context (``tokens`` are those of the new
            particles already). None: every particle goes on from its own.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """A proposal q and a target P over the same outcomes, and a random generator."""

    shape: tuple[int, ...]
    """Of the contexts; () for an unconditional target."""
    rng: np.random.Generator
    """For the decisions of a sampler; the draws of the proposal follow it, too."""
    name: str
    """Of the target, for messages."""
    log_bound: Any
    """Largest log P/q there can be, a number or (*contexts), where it is known; else None."""

    def draw(self, n: int) -> Drawn:
        """n fresh outcomes per context, (n, *contexts)."""
        ...

    def log_target(self, outcomes: Any) -> Float[np.ndarray, "n *contexts"]:
        """log P of outcomes (n, *contexts, ...), NumPy float64."""
        ...

    def log_proposal(self, outcomes: Any) -> Float[np.ndarray, "n *contexts"]:
        """log q of outcomes (n, *contexts, ...), NumPy float64."""
        ...

    def log_target_se(self, outcomes: Any) -> Float[np.ndarray, "n *contexts"] | None:
        """Standard error of `log_target` where the potential is an estimate, else None."""
        ...

    def tokens(self) -> TokenStream:
        """The proposal token by token; ValueError if its outcomes are not token sequences."""
        ...


def check_density_shape(shape: tuple[int, ...], source: Source, n: int | None = None) -> None:
    """Refuse a log-density that is not one number an outcome, (n, *contexts)."""
    if not shape or shape[1:] != source.shape or n not in (None, shape[0]):
        raise ValueError(
            f"a log-density of {source.name!r} has shape {shape}; needed is one number an "
            f"outcome, (n, *contexts) = {('n', *source.shape)}: declare token axes with "
            ".to_event(1), sum over them with .sum(-1), and give the proposal and the target "
            "the same contexts"
        )


def mixture_log_weights(components: Sequence[Any], weights: Sequence[float]) -> tuple[float, ...]:
    """Normalised log-weights of a mixture, one a component."""
    a = np.asarray(weights, dtype=np.float64)
    if len(components) == 0 or a.shape != (len(components),) or not np.all((a > 0) & (a < np.inf)):
        raise ValueError(
            f"a mixture of {len(components)} components needs as many positive weights, got "
            f"{list(weights)}"
        )
    return tuple(np.log(a / a.sum()).tolist())


def check_components(components: Sequence[Any]) -> None:
    """Refuse distributions over different contexts in one mixture."""
    shapes = [tuple(d.batch_shape) for d in components]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"the components of a mixture have batch shapes {shapes}; give all the same contexts"
        )
