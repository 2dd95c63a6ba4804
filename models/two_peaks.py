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

# fmt: off
REFERENCE = {
    "log_z": {"value": 2.4449647564539, "tolerance": 1e-09,
        "source": "closed form: sum over counts k, C(10, k) 0.4^k 0.6^(10-k) exp(r / beta)"},
    "mass_of_right_peak": {"value": 0.55890158802271, "tolerance": 1e-09,
        "source": "closed form: target mass at k > 4"},
    "forward_kl_optimum": {"value": 0.46868209597389, "tolerance": 1e-09,
        "source": "closed form: moment matching, s = E_p[k] / 10"},
    "forward_kl_minimum": {"value": 1.0116272648662, "tolerance": 1e-09,
        "source": "closed form: KL(p‖Binomial(10, s))"},
    "reverse_kl_at_forward_optimum": {"value": 0.86358607973651, "tolerance": 1e-09,
        "source": "closed form: KL(π_s‖p)"},
    "reverse_kl_optimum": {"value": 0.68115691251653, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: zero of the slope of KL(π_s‖p), by bisection"},
    "reverse_kl_minimum": {"value": 0.49590946342668, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: KL(π_s‖p) there"},
    "reverse_kl_local_optimum": {"value": 0.1837325102308, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: zero of the slope of KL(π_s‖p), by bisection"},
    "reverse_kl_local_minimum": {"value": 0.75517837069307, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: KL(π_s‖p) there"},
    "forward_kl_at_reverse_optimum": {"value": 1.9726105863003, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: KL(p‖π_s)"},
}
# fmt: on


def space() -> Space:
    """List all 1024 outcomes."""
    return Space.sequences(2, LENGTH, xp=jnp)


def reward(y: Any) -> Any:
    """Distance of the number of ones from the centre, in units of it."""
    return jnp.abs(y.sum(-1) - CENTRE) / CENTRE


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        letters = dist.BernoulliProbs(PRIOR_ONE)
        y = numpyro.sample("y", letters.expand([LENGTH]).to_event(1))
        numpyro.factor("reward", reward(y) / BETA)

    return program


def policy(logit: Any) -> dist.Distribution:
    """Memoryless policy with P(one) = sigmoid(logit), a scalar: it cannot be bimodal."""
    return memoryless(jnp.stack([jnp.zeros_like(logit), logit]), length=LENGTH)
