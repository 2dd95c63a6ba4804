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

# fmt: off
REFERENCE = {
    "log_z": {"value": 0.7985535469766, "tolerance": 1e-09,
        "source": "closed form: log sum_y prior(y) exp(r(y) / beta)"},
    "expected_reward": {"value": 0.58205549525028, "tolerance": 1e-09,
        "source": "closed form: sum_y p(y) r(y)"},
    "forward_kl_of_prior": {"value": 0.36555744352395, "tolerance": 1e-09,
        "source": "closed form: KL(p‖prior)"},
    "reverse_kl_of_prior": {"value": 0.3585535469766, "tolerance": 1e-09,
        "source": "closed form: KL(prior‖p)"},
    "jensen_shannon_of_prior": {"value": 0.086055430092416, "tolerance": 1e-09,
        "source": "closed form: KL(prior‖m)/2 + KL(p‖m)/2"},
    "total_variation_of_prior": {"value": 0.36305174048008, "tolerance": 1e-09,
        "source": "closed form: sum_y |prior - p| / 2"},
    "pearson_chi2_of_prior": {"value": 0.86233065364523, "tolerance": 1e-09,
        "source": "closed form: sum_y (prior - p)^2 / p"},
    "neyman_chi2_of_prior": {"value": 0.91393536041839, "tolerance": 1e-09,
        "source": "closed form: sum_y (prior - p)^2 / prior"},
    "squared_hellinger_of_prior": {"value": 0.17641818624649, "tolerance": 1e-09,
        "source": "closed form: sum_y (√prior - √p)^2"},
}
# fmt: on


def space() -> Space:
    """List all 6 outcomes."""
    return Space(jnp.arange(len(PRIOR)))


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        y = numpyro.sample("y", dist.CategoricalProbs(jnp.array(PRIOR)))
        numpyro.factor("reward", jnp.array(REWARDS)[y] / BETA)

    return program


def policy(logits: Any) -> dist.Distribution:
    """Return the policy with one logit for each outcome, shape (6,)."""
    return tabular(logits)
