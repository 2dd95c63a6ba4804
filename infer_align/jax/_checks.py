"""Arguments that several functions here share: keys, optimisers, contexts, proposals."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from infer_align._arguments import instance

__all__ = [
    "check_context_arguments",
    "check_key",
    "check_params",
    "check_proposal",
    "optimizer_or_adam",
]


def check_key(key: Any) -> None:
    """Refuse what is no random key of JAX: a seed, or arguments in another order."""
    dtype = getattr(key, "dtype", None)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    old = dtype == jnp.uint32 and jnp.shape(key)[-1:] == (2,)
    if not (new or old):
        raise TypeError(
            f"key is a random key, the first argument, got {type(key).__name__}; make one of a "
            "seed: jax.random.key(0)"
        )


def optimizer_or_adam(optimizer: Any, rate: float = 1e-2) -> optax.GradientTransformation:
    """The optimiser, Adam by default; TypeError for one of another library, or a learning rate."""
    if optimizer is None:
        return optax.adam(rate)
    return instance("optimizer", optimizer, optax.GradientTransformation, "optax.adam(1e-2)")


def check_params(params: Any) -> None:
    """Refuse parameters that no gradient can move: none at all, integers, what is no number.

    Raises
    ------
    TypeError, ValueError
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params has no array in it, so there is nothing to fit: got {params!r}")
    for path, leaf in leaves:
        try:
            kind = jnp.result_type(leaf)
        except TypeError:
            kind = None
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            got = type(leaf).__name__ if kind is None else f"{type(leaf).__name__} of {kind}"
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {got}, which no gradient moves; give real "
                "floating-point numbers, such as jnp.zeros(3)"
            )


def check_context_arguments(contexts: Any) -> tuple[Any, ...]:
    """The arguments of a conditional target, as a tuple."""
    if not isinstance(contexts, tuple | list):
        raise TypeError(
            "contexts is the tuple of the target's arguments, got "
            f"{type(contexts).__name__}; for a single one write contexts=(x,)"
        )
    return tuple(contexts)


def check_proposal(proposal: Any) -> None:
    """Refuse what is neither a distribution nor makes one of contexts."""
    if proposal is not None and not callable(proposal) and not hasattr(proposal, "log_prob"):
        raise TypeError(
            "a proposal is a NumPyro distribution or a callable from contexts to one, got "
            f"{type(proposal).__name__}"
        )
