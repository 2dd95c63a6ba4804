r"""JAX and NumPyro: programs as targets, policies on small outcome spaces, and fitting with optax.

A target is any NumPyro program (or a `Target`), a policy any function from parameters to a NumPyro
``Distribution``. Outcomes are on axis 0, contexts on the trailing axes, ``(n, *contexts)``; a
program describes *one* outcome of *one* context and is evaluated under ``jax.vmap``.

Nothing here sets ``jax_enable_x64``. Without it log-probabilities are float32; they are moved to
NumPy float64 before anything is subtracted, so weights, coefficients and diagnostics are float64
either way.
"""

from infer_align.jax import _installed, programs  # noqa: F401
from infer_align.jax.best_of_n import BestOfN
from infer_align.jax.diagnostics import assess
from infer_align.jax.fit import FitState, Step, fit, policy_gradient
from infer_align.jax.numpyro import ProgramPrior, target
from infer_align.jax.policies import (
    HiddenMarkov,
    Tabular,
    TokenSequence,
    hidden_markov,
    markov,
    memoryless,
    tabular,
)
from infer_align.jax.sources import Mixture, mixture, source
from infer_align.jax.token_products import token_product

__all__ = [
    "BestOfN",
    "FitState",
    "HiddenMarkov",
    "Mixture",
    "ProgramPrior",
    "Step",
    "Tabular",
    "TokenSequence",
    "assess",
    "fit",
    "hidden_markov",
    "markov",
    "memoryless",
    "mixture",
    "policy_gradient",
    "programs",
    "source",
    "tabular",
    "target",
    "token_product",
]
