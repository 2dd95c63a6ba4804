"""A hard constraint that the prior meets once in twelve thousand draws.

Outcomes are the 3^8 sequences of length 8 of a memoryless language model; accepted are those
with the letter c in at least 7 places, P = 8 · 0.2^7 · 0.8 + 0.2^8 = 8.448e-5. The target is the
prior given the constraint (GDC's pointwise constraint), so log Z = log P = −KL(p‖prior).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align import Space, indicator
from infer_align.jax import memoryless

LENGTH = 8
PRIOR = (0.5, 0.3, 0.2)
LETTER = 2
AT_LEAST = 7

REFERENCE = {}


def space() -> Space:
    """List all 6561 outcomes."""
    return Space.sequences(len(PRIOR), LENGTH, xp=jnp)


def count(y: Any) -> Any:
    """How often the letter occurs."""
    return (y == LETTER).sum(-1)


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        letters = dist.Categorical(probs=jnp.array(PRIOR))
        y = numpyro.sample("y", letters.expand([LENGTH]).to_event(1))
        numpyro.factor("constraint", indicator(count(y) >= AT_LEAST))

    return program


def policy(logits: Any) -> dist.Distribution:
    """Memoryless policy with letter logits of shape (3,): it can only come close."""
    return memoryless(logits, length=LENGTH)
