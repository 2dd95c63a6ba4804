"""`table`: an assessed tree as text."""

import math
import textwrap
from typing import TYPE_CHECKING

from infer_align.diagnostics._summary import Estimate
from infer_align.diagnostics._tree import estimates

if TYPE_CHECKING:
    import xarray

WIDTH = 96


def table(tree: "xarray.DataTree", *, before: "xarray.DataTree | None" = None) -> str:
    """Estimates with their intervals as fixed-width text, unreliable ones marked as such.

    Parameters
    ----------
    tree : xarray.DataTree
        From `assess`.
    before : xarray.DataTree, optional
        An assessment to show beside it, as "before".

    Returns
    -------
    str
        One row an estimate; then the effective sample size, Pareto k̂, and advice.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import diagnostics
    >>> from infer_align.estimators import LogWeights
    >>> tree = diagnostics.assess(LogWeights(np.full(300, -1.0), np.full(300, 1.0)), divergences=())
    >>> print(diagnostics.table(tree))
                    value  95% interval
    log_z           2.000  [2.000, 2.000]
    entropy         1.000  [1.000, 1.000]
    acceptance      1.000  [0.987, 1.000]
    draws           300
    ess             300 (100%)
    pareto k-hat    -inf
    - the largest weights P/q tie: there is no tail to fit, Pareto k-hat is -inf, and the ESS alone
      decides.
    """
    trees = [tree] if before is None else [before, tree]
    columns = [_column(t) for t in trees]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    level = f"{tree['diagnostics'].attrs['level']:.0%} interval"
    left = max(len("pareto k-hat"), *(len(label) for label in labels)) + 2
    widths = [max(len(cell) for cell in column.values()) for column in columns]
    heads = (
        [f"  value  {level}"] if before is None else [f"{'before':>7}", f"{'after':>7}  {level}"]
    )
    lines = [" " * left + "  ".join(h.ljust(w) for h, w in zip(heads, widths, strict=True))]
    for label in labels:
        cells = [column.get(label, "").ljust(w) for column, w in zip(columns, widths, strict=True)]
        lines.append(label.ljust(left) + "  ".join(cells))
    names = [""] if before is None else ["before: ", "after: "]
    for name, t in zip(names, trees, strict=True):
        for note in filter(None, t["diagnostics"].attrs["notes"].split("\n")):
            lines += textwrap.wrap(
                f"- {name}{note}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )
    return "\n".join(line.rstrip() for line in lines)


def _column(tree: "xarray.DataTree") -> dict[str, str]:
    """Label → cell of one assessment."""
    cells = {_label(name): _cell(e) for name, e in estimates(tree).items()}
    data = tree["diagnostics"].to_dataset()
    contexts = tree["diagnostics/contexts"].sizes["context"]
    n = data.attrs["n"]
    cells["draws"] = f"{n}" + (f" x {contexts} contexts" if contexts > 1 else "")
    for suffix, mark in _kinds(data):
        ess = float(data["ess" + suffix])
        cells["ess" + mark] = f"{ess:.0f} ({ess / (n * contexts):.0%})"
        cells["pareto k-hat" + mark] = f"{float(data['pareto_khat' + suffix]):.2f}"
    if (gap := data.attrs.get("max_sample_score_difference")) is not None:
        cells["sample - score"] = f"{gap:.2g} nats at most"
    return cells


def _kinds(data: "xarray.Dataset") -> list[tuple[str, str]]:
    """Suffixes and marks of the weights that matter."""
    if data.attrs["on_policy"]:
        return [("", "")]
    if "ess_policy" in data:
        return [("", " (P/q)"), ("_policy", " (π/q)")]
    return [("", ""), ("_evidence", " (Z)")] if "ess_evidence" in data else [("", "")]


def _label(name: str) -> str:
    for prefix, law in (("policy_", "π"), ("target_", "p")):
        if name.startswith(prefix):
            return f"E_{law}[{name.removeprefix(prefix)}]"
    return name


def _cell(e: Estimate) -> str:
    value = "undefined" if math.isnan(e.value) else _number(e.value)
    if e.reliable and e.low == e.high and math.isinf(e.value):
        return f"{value:>7}  certain"
    if e.reliable:
        return f"{value:>7}  [{_number(e.low)}, {_number(e.high)}]"
    if e.value == -math.inf and e.high < math.inf:
        return f"{value:>7}  unreliable, below {_number(e.high)}"
    return f"{value:>7}  unreliable"


def _number(x: float) -> str:
    return f"{x:z.3f}" if abs(x) < 1000 or math.isinf(x) else f"{x:.4g}"
