r"""Targets: unnormalised distributions declared as a prior and a log-potential.

.. math:: \log P(y | x) = \log \mathrm{prior}(y | x) + φ(y, x)

A Pyro or NumPyro program is the same thing written as a program (``infer_align.torch.target``,
``infer_align.jax.target``): its ``sample`` sites are the prior, its ``factor`` sites and observed
sites the potential. The combinators here build it without a program. Outcomes are on axis 0,
contexts on the trailing axes; a conditional target has one Z per context.
"""

from infer_align.targets._combinators import condition, product, tilt
from infer_align.targets._ensembles import uncertainty_weighted, worst_case
from infer_align.targets._target import Target, indicator
from infer_align.targets._target import add_potential as add_potential
from infer_align.targets._weighted import WeightedSample

__all__ = [
    "Target",
    "WeightedSample",
    "condition",
    "indicator",
    "product",
    "tilt",
    "uncertainty_weighted",
    "worst_case",
]
