r"""How close is a policy to a target? Estimates with intervals claimed only where they hold.

Draws y ~ q of shape ``(n, *contexts)`` (q is the policy, or any proposal) carry weights P/q for
the target and π/q for the policy. From them come log Z, the divergences between π and p in
either direction, and means of features under both, each with a delta-method interval that
includes the noise of log Ẑ. Two numbers say whether to believe it: the effective sample size
and Pareto k̂, the tail index of the weights. Outcomes are on axis 0, contexts on the trailing
axes; pooled values are means over contexts.

Everything is computed in NumPy float64, whatever library the log-probabilities come from.
"""

from infer_align.diagnostics._batch import batch_metrics
from infer_align.diagnostics._compare import compare
from infer_align.diagnostics._gradients import (
    Comparison,
    GradientRow,
    Measurement,
    compare_gradients,
)
from infer_align.diagnostics._khat import kish_ess, pareto_khat
from infer_align.diagnostics._summary import Estimate
from infer_align.diagnostics._table import table
from infer_align.diagnostics._tree import assess, estimates, save

__all__ = [
    "Comparison",
    "Estimate",
    "GradientRow",
    "Measurement",
    "assess",
    "batch_metrics",
    "compare",
    "compare_gradients",
    "estimates",
    "kish_ess",
    "pareto_khat",
    "save",
    "table",
]
