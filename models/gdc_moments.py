"""Five moments at once of a Markov chain over four letters (GDC).

The target is the law nearest to the chain whose five features have the desired means, P(y) =
prior(y) exp(sum_k lambda_k phi_k(y)). ``program`` declares it, ``target`` has the multipliers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import infer_align as ia
from infer_align.jax import markov

LENGTH, INITIAL = 6, (0.4, 0.3, 0.2, 0.1)
MEANS = {"share_c": 0.4, "has_d": 0.25, "repeats": 1.5, "starts_b": 0.5, "ends_like_start": 0.6}
# fmt: off
TRANSITION = ((.5, .2, .2, .1), (.3, .4, .1, .2), (.2, .3, .4, .1), (.4, .2, .3, .1))
REFERENCE = {
    "multiplier_share_c": {"value": 4.9754395927649, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "multiplier_has_d": {"value": -1.5146530039135, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "multiplier_repeats": {"value": -0.82024038467044, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "multiplier_starts_b": {"value": 1.3790746882895, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "multiplier_ends_like_start": {"value": 1.26724439444, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "log_z": {"value": 0.6688843837782, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "forward_kl_of_prior": {"value": 1.1621516061525, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
    "reverse_kl_of_prior": {"value": 1.2690061661616, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 4096 outcomes, Newton's method"},
}
# fmt: on


def space() -> ia.Space:
    """List all 4096 outcomes."""
    return ia.Space.sequences(len(INITIAL), LENGTH, xp=jnp)


def features(y: Any) -> dict[str, Any]:
    """Features of sequences (..., 6), by name."""
    return {
        "share_c": (y == 2).sum(-1) / LENGTH,
        "has_d": (y == 3).any(-1),
        "repeats": (y[..., 1:] == y[..., :-1]).sum(-1),
        "starts_b": y[..., 0] == 1,
        "ends_like_start": y[..., -1] == y[..., 0],
    }


def program() -> Callable[[], None]:
    """Return the declaration as a NumPyro program."""
    chain = {"initial": INITIAL, "transition": TRANSITION}

    def sequence() -> None:
        y = numpyro.sample("y", policy({k: jnp.log(jnp.array(p)) for k, p in chain.items()}))
        for name, value in features(y).items():
            ia.moment(name, value, MEANS[name])

    return sequence


def target() -> ia.Target:
    """Return the target with its multipliers."""
    known = {k: REFERENCE[f"multiplier_{k}"]["value"] for k in MEANS}
    return ia.moment_match(ia.jax.target(program()), multipliers=known)


def policy(params: Mapping[str, Any]) -> dist.Distribution:
    """Homogeneous Markov policy with logits ``initial`` (4,) and ``transition`` (4, 4)."""
    return markov(params, length=LENGTH)
