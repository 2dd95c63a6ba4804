r"""Targets: unnormalised distributions declared as a prior and a log-potential.

.. math:: \log P(y | x) = \log \mathrm{prior}(y | x) + φ(y, x)

A Pyro or NumPyro program is the same thing written as a program (``infer_align.torch.target``,
``infer_align.jax.target``): its ``sample`` sites are the prior, its ``factor`` sites and observed
sites the potential. The combinators here build it without a program. Outcomes are on axis 0,
contexts on the trailing axes; a conditional target has one Z per context.
"""

from infer_align.targets._best_of_n import best_of_draws as best_of_draws
from infer_align.targets._best_of_n import (
    best_of_n,
    quantile,
    quantile_tilt,
    soft_best_of_n,
    threshold,
    top_fraction,
)
from infer_align.targets._best_of_n import check_draws as check_draws
from infer_align.targets._budget import Budget, kl_budget
from infer_align.targets._budget import exact_budget as exact_budget
from infer_align.targets._capabilities import check_provides
from infer_align.targets._cdf import RewardCdf
from infer_align.targets._cdf import tolerance_of as tolerance_of
from infer_align.targets._combinators import condition, product, tilt
from infer_align.targets._declared import Constrained as Constrained
from infer_align.targets._declared import Moment, moment, unconstrained
from infer_align.targets._declared import collecting as collecting
from infer_align.targets._ensembles import mean_reward, uncertainty_weighted, worst_case
from infer_align.targets._moment_fit import MomentFit
from infer_align.targets._moments import exact_moments as exact_moments
from infer_align.targets._moments import moment_match, solve_moments
from infer_align.targets._preferences import preference_tilt
from infer_align.targets._references import geometric_mixture, temper
from infer_align.targets._rounds import match_moments
from infer_align.targets._samples import Empirical, demonstrations, teacher
from infer_align.targets._target import Target, indicator
from infer_align.targets._target import add_potential as add_potential
from infer_align.targets._weighted import WeightedSample

__all__ = [
    "Budget",
    "Empirical",
    "Moment",
    "MomentFit",
    "RewardCdf",
    "Target",
    "WeightedSample",
    "best_of_n",
    "check_provides",
    "condition",
    "demonstrations",
    "geometric_mixture",
    "indicator",
    "kl_budget",
    "match_moments",
    "mean_reward",
    "moment",
    "moment_match",
    "preference_tilt",
    "product",
    "quantile",
    "quantile_tilt",
    "soft_best_of_n",
    "solve_moments",
    "teacher",
    "temper",
    "threshold",
    "tilt",
    "top_fraction",
    "uncertainty_weighted",
    "unconstrained",
    "worst_case",
]
