"""A Markov language model that must write what matches a regular expression.

Outcomes are the 3^10 sequences of length 10 over a, b, c. Accepted is ``(a|bb)*c+``: letters a
and pairs of b in any order, then c to the end. The finite automaton of the expression multiplies
into the chain exactly, so that backward messages over (letter, state) give the answer.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from infer_align import Space, Target, product
from infer_align.exact import Automaton
from infer_align.jax import markov

LENGTH, REGEX = 10, "(a|bb)*c+"
INITIAL = (0.3, 0.5, 0.2)
TRANSITION = ((0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.3, 0.2, 0.5))
STATES = ((0, 1, 2), (3, 0, 3), (3, 3, 2), (3, 3, 3))
"""The next state by a, b, c: among a and bb, after a single b, among the c, and lost."""
ACCEPTING = (False, False, True, False)

# fmt: off
REFERENCE = {
    "matches": {"value": 143.0, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "probability": {"value": 0.0221537488, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "log_z": {"value": -3.8097485507618, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "forward_kl_of_prior": {"value": 3.8097485507618, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "first_is_a": {"value": 0.45314957259062, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "expected_pairs": {"value": 2.1394614350777, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
    "expected_count_of_c": {"value": 3.0403274140221, "tolerance": 1e-09,
        "source": "scripts/reference_numbers.py: 3^10 sequences, Python's re"},
}
# fmt: on


def space() -> Space:
    """List all 59049 outcomes."""
    return Space.sequences(len(INITIAL), LENGTH, xp=jnp)


def automaton() -> Automaton:
    """Return the automaton of the expression."""
    return Automaton(STATES, ACCEPTING)


def target() -> Target:
    """Return the chain given that its sequence matches."""
    chain = {
        "initial": jnp.log(jnp.array(INITIAL)),
        "transition": jnp.log(jnp.array(TRANSITION)),
    }
    return product(markov(chain, length=LENGTH), automaton())


def policy(params: Mapping[str, Any]) -> dist.Distribution:
    """Homogeneous Markov policy with logits ``initial`` (3,) and ``transition`` (3, 3)."""
    return markov(params, length=LENGTH)
