"""infer_align: alignment as inference.

Declare a target distribution over a language model's outputs as a probabilistic program, solve
it exactly where it is small, sample it, or fit a policy to it with any divergence and any
gradient estimator, and measure how close the result is.

Names are loaded on first use: importing the package loads neither torch nor JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from infer_align import (
        diagnostics,
        divergences,
        estimators,
        exact,
        jax,
        programs,
        samplers,
        spaces,
        targets,
        testing,
        torch,
    )
    from infer_align.divergences import FDivergence
    from infer_align.estimators import (
        Estimator,
        LogWeights,
        f_dpg,
        reinforce,
        trajectory_balance,
        vargrad,
    )
    from infer_align.spaces import Space
    from infer_align.targets import (
        RewardCdf,
        Target,
        WeightedSample,
        best_of_n,
        condition,
        indicator,
        kl_budget,
        match_moments,
        moment,
        moment_match,
        product,
        quantile,
        quantile_tilt,
        soft_best_of_n,
        solve_moments,
        threshold,
        tilt,
        top_fraction,
        uncertainty_weighted,
        worst_case,
    )

_MODULES = (
    "diagnostics",
    "divergences",
    "estimators",
    "exact",
    "jax",
    "programs",
    "samplers",
    "spaces",
    "targets",
    "testing",
    "torch",
)
_NAMES = {
    "Estimator": "estimators",
    "FDivergence": "divergences",
    "LogWeights": "estimators",
    "RewardCdf": "targets",
    "Space": "spaces",
    "Target": "targets",
    "WeightedSample": "targets",
    "best_of_n": "targets",
    "condition": "targets",
    "f_dpg": "estimators",
    "indicator": "targets",
    "kl_budget": "targets",
    "match_moments": "targets",
    "moment": "targets",
    "moment_match": "targets",
    "product": "targets",
    "quantile": "targets",
    "quantile_tilt": "targets",
    "reinforce": "estimators",
    "soft_best_of_n": "targets",
    "solve_moments": "targets",
    "threshold": "targets",
    "tilt": "targets",
    "top_fraction": "targets",
    "trajectory_balance": "estimators",
    "uncertainty_weighted": "targets",
    "vargrad": "estimators",
    "worst_case": "targets",
}

__all__ = [
    "Estimator",
    "FDivergence",
    "LogWeights",
    "RewardCdf",
    "Space",
    "Target",
    "WeightedSample",
    "best_of_n",
    "condition",
    "diagnostics",
    "divergences",
    "estimators",
    "exact",
    "f_dpg",
    "indicator",
    "jax",
    "kl_budget",
    "match_moments",
    "moment",
    "moment_match",
    "product",
    "programs",
    "quantile",
    "quantile_tilt",
    "reinforce",
    "samplers",
    "soft_best_of_n",
    "solve_moments",
    "spaces",
    "targets",
    "testing",
    "threshold",
    "tilt",
    "top_fraction",
    "torch",
    "trajectory_balance",
    "uncertainty_weighted",
    "vargrad",
    "worst_case",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
