"""A memoryless language model over three letters, tilted by an additive reward.

Outcomes are the 3^8 sequences of length 8. Prior and tilt factorise over the letters, so the
tilted law is memoryless too, with letter probabilities p_a exp(r_a / beta) / z, and all its
numbers are 8 times those of one letter. T1 of the asymptotics literature: r = log q.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from infer_align import Space
from infer_align.jax import memoryless

LENGTH = 8
PRIOR = (0.5, 0.3, 0.2)
REWARD_PROBS = (0.2, 0.3, 0.5)
"""q of the reward r = sum over letters of log q."""
BETA = 0.6

# fmt: off
REFERENCE = {
    "log_z": {"value": -15.871409513011, "tolerance": 1e-09,
        "source": "closed form: 8 log z, z = sum_a p_a q_a^(1/beta)"},
    "expected_reward": {"value": -8.5665007376212, "tolerance": 1e-09,
        "source": "closed form: 8 sum_a t_a log q_a, t_a = p_a q_a^(1/beta) / z"},
    "expected_reward_of_prior": {"value": -10.436321869015, "tolerance": 1e-09,
        "source": "closed form: 8 sum_a p_a log q_a"},
    "forward_kl_of_prior": {"value": 1.5939082836424, "tolerance": 1e-09,
        "source": "closed form: 8 KL(t‖p)"},
    "reverse_kl_of_prior": {"value": 1.5224602686798, "tolerance": 1e-09,
        "source": "closed form: 8 KL(p‖t)"},
    "entropy": {"value": 8.5074627771827, "tolerance": 1e-09,
        "source": "closed form: 8 times the entropy of t"},
}
# fmt: on


def space() -> Space:
    """List all 6561 outcomes."""
    return Space.sequences(len(PRIOR), LENGTH, xp=jnp)


def reward(y: Any) -> Any:
    """Log-likelihood of a sequence under the letter probabilities q, shape (...)."""
    return jnp.log(jnp.array(REWARD_PROBS))[y].sum(-1)


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        letters = dist.CategoricalProbs(jnp.array(PRIOR))
        y = numpyro.sample("y", letters.expand([LENGTH]).to_event(1))
        numpyro.factor("reward", reward(y) / BETA)

    return program


def policy(logits: Any) -> dist.Distribution:
    """Memoryless policy with letter logits of shape (3,): it can represent the target."""
    return memoryless(logits, length=LENGTH)
