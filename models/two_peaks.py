"""A bimodal target on binary sequences, and a policy that can cover only one of its peaks.

Outcomes are the 2^10 sequences of length 10. The reward grows with the distance of the number k
of ones from 4, so the target has a peak at k = 1 and another at k = 7. A memoryless policy has
one parameter, the probability s of a one. KL(p‖π) is least where s matches the target's mean,
between the peaks; KL(π‖p) has a local minimum at each peak.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align import Space
from infer_align.jax import memoryless

LENGTH = 10
PRIOR_ONE = 0.4
"""Probability of a one under the prior."""
CENTRE = 4
BETA = 0.2

REFERENCE = {}


def space() -> Space:
    """List all 1024 outcomes."""
    return Space.sequences(2, LENGTH, xp=jnp)


def reward(y: Any) -> Any:
    """Distance of the number of ones from the centre, in units of it."""
    return jnp.abs(y.sum(-1) - CENTRE) / CENTRE


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        letters = dist.Bernoulli(probs=PRIOR_ONE)
        y = numpyro.sample("y", letters.expand([LENGTH]).to_event(1))
        numpyro.factor("reward", reward(y) / BETA)

    return program


def policy(logit: Any) -> dist.Distribution:
    """Memoryless policy with P(one) = sigmoid(logit), a scalar: it cannot be bimodal."""
    return memoryless(jnp.stack([jnp.zeros_like(logit), logit]), length=LENGTH)
