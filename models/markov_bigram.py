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

# fmt: off
REFERENCE = {
    "log_z": {"value": 2.2453030596033, "tolerance": 1e-09,
        "source": "closed form: log sum_a initial(a) m_1(a), backward messages"},
    "expected_reward": {"value": 1.8347888485499, "tolerance": 1e-09,
        "source": "closed form: sum of pair marginals times g, backward messages"},
    "expected_reward_of_prior": {"value": 0.53011875, "tolerance": 1e-09,
        "source": "closed form: sum of the prior's pair marginals · g"},
    "forward_kl_of_prior": {"value": 1.4242746374965, "tolerance": 1e-09,
        "source": "closed form: E_p[g] / beta - log Z"},
    "reverse_kl_of_prior": {"value": 1.1850655596033, "tolerance": 1e-09,
        "source": "closed form: log Z - E_prior[g]/beta"},
    "first_is_a": {"value": 0.56530654302064, "tolerance": 1e-09,
        "source": "closed form: initial(a) m_1(a) / Z"},
    "last_is_c": {"value": 0.26044195198631, "tolerance": 1e-09,
        "source": "closed form: the forward messages at the end, over Z"},
}
# fmt: on


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
