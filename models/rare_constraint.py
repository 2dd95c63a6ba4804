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

# fmt: off
REFERENCE = {
    "probability": {"value": 8.448e-05, "tolerance": 1e-15,
        "source": "closed form: 8 · 0.2^7 · 0.8 + 0.2^8"},
    "log_z": {"value": -9.3789957380063, "tolerance": 1e-09,
        "source": "closed form: log P"},
    "forward_kl_of_prior": {"value": 9.3789957380063, "tolerance": 1e-09,
        "source": "closed form: KL(p‖prior) = -log P"},
    "expected_count": {"value": 7.030303030303, "tolerance": 1e-09,
        "source": "closed form: sum_k k C(8, k) 0.2^k 0.8^(8-k) / P, k = 7, 8"},
    "memoryless_optimum": {"value": 0.87878787878788, "tolerance": 1e-09,
        "source": "closed form: moment matching, P(c) = E_p[count] / 8"},
    "memoryless_forward_kl": {"value": 0.8024428527847, "tolerance": 1e-09,
        "source": "closed form: -log P - 8 KL(s‖prior), s the matched letters"},
}
# fmt: on


def space() -> Space:
    """List all 6561 outcomes."""
    return Space.sequences(len(PRIOR), LENGTH, xp=jnp)


def count(y: Any) -> Any:
    """How often the letter occurs."""
    return (y == LETTER).sum(-1)


def target() -> Callable[[], None]:
    """Return the target as a NumPyro program."""

    def program() -> None:
        letters = dist.CategoricalProbs(jnp.array(PRIOR))
        y = numpyro.sample("y", letters.expand([LENGTH]).to_event(1))
        numpyro.factor("constraint", indicator(count(y) >= AT_LEAST))

    return program


def policy(logits: Any) -> dist.Distribution:
    """Memoryless policy with letter logits of shape (3,): it can only come close."""
    return memoryless(logits, length=LENGTH)
