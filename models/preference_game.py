"""A game of preferences that no reward explains: every answer loses to some other.

Four outcomes with P(y ≻ y') given, the first three in a cycle. The regularised game has one
equilibrium, π ∝ prior · exp(P(y ≻ π) / beta) (Munos et al. 2023, arXiv 2312.00886); the target is
the prior tilted by the probability of being preferred to it, which is the equilibrium itself.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from infer_align import Space, Target, exact
from infer_align.jax import tabular
from infer_align.targets import preference_tilt

PRIOR = (0.4, 0.3, 0.2, 0.1)
PREFERENCE = (
    (0.5, 0.9, 0.2, 0.6), (0.1, 0.5, 0.8, 0.55), (0.8, 0.2, 0.5, 0.3), (0.4, 0.45, 0.7, 0.5),
)  # fmt: skip
"""P(y ≻ y'), row y, column y'; with its transpose it sums to one."""
BETA = 0.15

# fmt: off
REFERENCE = {
    "equilibrium_0": {"value": 0.41794984072443, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "equilibrium_1": {"value": 0.18816880282348, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "equilibrium_2": {"value": 0.28552390638506, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "equilibrium_3": {"value": 0.10835745006703, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "log_z": {"value": 3.2924104148544, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "forward_kl_of_prior": {"value": 0.04092291847898, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "reverse_kl_of_prior": {"value": 0.043145947489851, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4000 damped best responses"},
    "duality_gap_of_prior": {"value": 0.02897062571711, "tolerance": 1e-09,
        "source": "closed form: 2 beta KL(prior‖its best response)"},
}
# fmt: on


def space() -> Space:
    """List all 4 outcomes."""
    return Space(jnp.arange(len(PRIOR)))


def preference(y: Any, other: Any) -> Any:
    """Probability that y is preferred to the other."""
    return jnp.array(PREFERENCE)[y, other]


def equilibrium() -> exact.Equilibrium:
    """Return the equilibrium, certified."""
    return exact.nash(np.array(PREFERENCE), np.log(PRIOR), BETA)


def target() -> Target:
    """Return the best response to the equilibrium."""
    opponents, weights = jnp.arange(len(PRIOR)), np.exp(equilibrium().log_policy)
    prior = dist.CategoricalProbs(jnp.array(PRIOR))
    return preference_tilt(prior, preference, opponents, BETA, weights=weights)


def policy(logits: Any) -> dist.Distribution:
    """Return the policy with one logit for each outcome, shape (4,)."""
    return tabular(logits)
