"""Six outcomes with unequal probabilities and rewards: small enough to check by hand.

The target is the prior tilted by the rewards. No two outcomes are alike, so a swapped direction,
a dropped baseline or a permuted axis changes every number.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align import Space
from infer_align.jax import tabular

PRIOR = (0.36, 0.24, 0.2, 0.12, 0.05, 0.03)
REWARDS = (0.0, 0.5, -0.25, 1.0, 0.15, 0.75)
BETA = 0.5

REFERENCE = {}


def space() -> Space:
    """List all 6 outcomes."""
    return Space(jnp.arange(len(PRIOR)))


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        y = numpyro.sample("y", dist.Categorical(probs=jnp.array(PRIOR)))
        numpyro.factor("reward", jnp.array(REWARDS)[y] / BETA)

    return program


def policy(logits: Any) -> dist.Distribution:
    """Return the policy with one logit for each outcome, shape (6,)."""
    return tabular(logits)
