"""Three reward models that disagree, and three ways to make one reward of them.

Outcomes are the 3^6 sequences of length 6 of a memoryless language model. Two judges like the
letter c, the third abhors it: the mean of the three is fooled a little, their worst case and
their mean less the variance are not (Coste et al. 2023, arXiv 2310.02743).
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from infer_align import Space, Target, tilt, uncertainty_weighted, worst_case
from infer_align.jax import memoryless
from infer_align.targets import mean_reward

LENGTH = 6
PRIOR = (0.5, 0.3, 0.2)
JUDGES = ((0.0, 0.3, 1.2), (0.1, 0.5, 0.9), (0.2, 0.4, -0.8))
"""Reward for each letter, by judge; a sequence has the sum over its letters."""
BETA, WEIGHT = 0.5, 0.4
"""Temperature, and what a unit of variance costs."""

# fmt: off
REFERENCE = {
    "log_z_of_mean": {"value": 3.3719310942524, "tolerance": 1e-09,
        "source": "closed form: 6 log sum_a p_a exp(mean_a / beta)"},
    "c_of_mean": {"value": 0.27123768896105, "tolerance": 1e-09,
        "source": "closed form: p_c exp(mean_c / beta) over the sum"},
    "log_z": {"value": 1.023679048342, "tolerance": 1e-09,
        "source": "closed form: log of the sum over letter counts"},
    "c_of_worst_case": {"value": 0.094261401472744, "tolerance": 1e-09,
        "source": "closed form: sum over letter counts of k_c / 6, over Z"},
    "forward_kl_of_prior": {"value": 0.49105984664475, "tolerance": 1e-09,
        "source": "closed form: KL(p‖prior), sum over letter counts"},
    "reverse_kl_of_prior": {"value": 0.81485984834198, "tolerance": 1e-09,
        "source": "closed form: KL(prior‖p), sum over letter counts"},
    "log_z_of_uncertainty": {"value": 2.4250305698124, "tolerance": 1e-09,
        "source": "closed form: log of the sum over letter counts"},
    "c_of_uncertainty": {"value": 0.12927121923779, "tolerance": 1e-09,
        "source": "closed form: sum over letter counts of k_c / 6, over Z"},
}
# fmt: on


def space() -> Space:
    """List all 729 outcomes."""
    return Space.sequences(len(PRIOR), LENGTH, xp=jnp)


def rewards() -> list[Any]:
    """Return the three reward functions."""
    by_table = lambda table: lambda y: jnp.array(table)[y].sum(-1)
    return [by_table(table) for table in JUDGES]


def target() -> Target:
    """Return the target of the worst case."""
    return tilt(_prior(), worst_case(*rewards()), BETA)


def mean_target() -> Target:
    """Return the target of the mean."""
    return tilt(_prior(), mean_reward(*rewards()), BETA)


def uncertainty_target() -> Target:
    """Return the target of the mean less the variance."""
    return tilt(_prior(), uncertainty_weighted(*rewards(), weight=WEIGHT), BETA)


def policy(logits: Any) -> dist.Distribution:
    """Memoryless policy with letter logits of shape (3,)."""
    return memoryless(logits, length=LENGTH)


def _prior() -> dist.Distribution:
    return dist.CategoricalProbs(jnp.array(PRIOR)).expand([LENGTH]).to_event(1)
