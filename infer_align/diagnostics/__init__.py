r"""How close is a policy to a target? Estimates with intervals claimed only where they hold.

Draws y ~ q of shape ``(n, *contexts)`` (q is the policy, or any proposal) carry weights P/q for
the target and π/q for the policy. From them come log Z, the divergences between π and p in
either direction, and means of features under both, each with a delta-method interval that
includes the noise of log Ẑ. Two numbers say whether to believe it: the effective sample size
and Pareto k̂, the tail index of the weights. Outcomes are on axis 0, contexts on the trailing
axes; pooled values are means over contexts.

Everything is computed in NumPy float64, whatever library the log-probabilities come from.
"""

from infer_align._reliability import kish_ess, pareto_khat
from infer_align.diagnostics._agreement import log_z_agreement
from infer_align.diagnostics._batch import batch_metrics
from infer_align.diagnostics._bounds import (
    Bounds,
    forward_kl_bounds,
    log_z_bounds,
    replicate,
    reverse_kl_bounds,
)
from infer_align.diagnostics._compare import compare
from infer_align.diagnostics._coverage import Coverage, expected_coverage, mode_coverage
from infer_align.diagnostics._diversity import distinct_n, self_bleu
from infer_align.diagnostics._frontier import FrontierPoint, frontier_points
from infer_align.diagnostics._gradients import (
    Comparison,
    GradientRow,
    Measurement,
    compare_gradients,
)
from infer_align.diagnostics._plot_curves import plot_frontier, plot_positions
from infer_align.diagnostics._plot_features import plot_pairs, plot_ranks
from infer_align.diagnostics._plot_weights import plot_contexts, plot_log_z, plot_weights
from infer_align.diagnostics._positions import ByPosition, Drift, by_position, drift
from infer_align.diagnostics._summary import Estimate
from infer_align.diagnostics._table import table
from infer_align.diagnostics._tree import assess, estimates, save
from infer_align.diagnostics._weighted import assess_sample

__all__ = [
    "Bounds",
    "ByPosition",
    "Comparison",
    "Coverage",
    "Drift",
    "Estimate",
    "FrontierPoint",
    "GradientRow",
    "Measurement",
    "assess",
    "assess_sample",
    "batch_metrics",
    "by_position",
    "compare",
    "compare_gradients",
    "distinct_n",
    "drift",
    "estimates",
    "expected_coverage",
    "forward_kl_bounds",
    "frontier_points",
    "kish_ess",
    "log_z_agreement",
    "log_z_bounds",
    "mode_coverage",
    "pareto_khat",
    "plot_contexts",
    "plot_frontier",
    "plot_log_z",
    "plot_pairs",
    "plot_positions",
    "plot_ranks",
    "plot_weights",
    "replicate",
    "reverse_kl_bounds",
    "save",
    "self_bleu",
    "table",
]
