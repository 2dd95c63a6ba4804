"""A Markov chain over three letters, rewarded for the bigrams that it writes.

Outcomes are the 3^6 sequences of length 6. The tilted law is a Markov chain too, but not a
homogeneous one: its transitions follow from the backward messages
m_t(a) = sum_b P(b|a) exp(g(a, b) / beta) m_{t+1}(b), and Z = sum_a initial(a) m_1(a).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align import Space
from infer_align.jax import markov

LENGTH = 6
INITIAL = (0.5, 0.25, 0.25)
TRANSITION = ((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), (0.3, 0.3, 0.4))
BIGRAM_REWARD = ((0.0, 0.2, 1.0), (0.5, 0.0, -0.3), (-0.2, 0.7, 0.0))
"""g(a, b), row a then b."""
BETA = 0.5

REFERENCE = {}


def space() -> Space:
    """List all 729 outcomes."""
    return Space.sequences(len(INITIAL), LENGTH, xp=jnp)


def reward(y: Any) -> Any:
    """Sum of g over the bigrams of a sequence."""
    return jnp.array(BIGRAM_REWARD)[y[..., :-1], y[..., 1:]].sum(-1)


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        chain = {
            "initial": jnp.log(jnp.array(INITIAL)),
            "transition": jnp.log(jnp.array(TRANSITION)),
        }
        y = numpyro.sample("y", markov(chain, length=LENGTH))
        numpyro.factor("reward", reward(y) / BETA)

    return program


def policy(params: Mapping[str, Any]) -> dist.Distribution:
    """Homogeneous Markov policy with logits ``initial`` (3,) and ``transition`` (3, 3)."""
    return markov(params, length=LENGTH)
