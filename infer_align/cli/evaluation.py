"""Assessments of a run: drawn, kept as ArviZ trees, compared, and judged.

All that a table or a report shows is computed from the trees, which are on disk.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from infer_align import diagnostics
from infer_align.cli import data, measuring
from infer_align.cli.console import meter
from infer_align.cli.job import Job
from infer_align.cli.measuring import COMPARED
from infer_align.diagnostics import Estimate
from infer_align.divergences import forward_kl, reverse_kl
from infer_align.estimators import LogWeights

if TYPE_CHECKING:
    import xarray

    from infer_align.torch import CausalLM


class Row(NamedTuple):
    """A line of the before/after table, as text."""

    label: str
    before: str
    after: str
    change: str = ""
    heading: bool = False


class Verdict(NamedTuple):
    """Whether a fit came closer to its target, and why."""

    passed: bool
    reasons: list[tuple[bool, str]]

    def words(self, *, exam: bool) -> tuple[str, str]:
        """PASS or FAIL in an exam, else a plain yes or no, and what it means."""
        if exam:
            found = "" if self.passed else "not shown to be "
            return ("PASS" if self.passed else "FAIL"), f"{found}closer to the target"
        return "closer to the target", ("yes" if self.passed else "not shown")


def evaluate(job: Job, policy: "CausalLM", *, n: int, seed: int, label: str) -> "xarray.DataTree":
    """Assess a policy on fresh draws, with a progress bar."""
    from infer_align.torch import collect

    with meter(label, n, lines=4) as bar:
        drawn = collect(
            policy, job.program, job.prompts, job.columns, n=n, features=job.features,
            seed=seed, progress=bar.advance,
        )  # fmt: skip
    if not drawn.features and bool(np.isfinite(drawn.log_potential.numpy()).all()):
        drawn = drawn._replace(features={"log_potential": drawn.log_potential})
    tree = drawn.assess(contexts=job.labels)
    tree.attrs["seed"] = seed
    measuring.measure(tree, job, policy, drawn)
    return tree


def outcomes(tree: "xarray.DataTree") -> np.ndarray:
    """Outcomes (n, contexts, T)."""
    return values(tree, "outcomes", "y")[0]


def accepted(tree: "xarray.DataTree") -> bool:
    """Whether the target accepted any draw."""
    return bool(np.isfinite(stat(tree, "log_target")).any())


def stat(tree: "xarray.DataTree", name: str) -> np.ndarray:
    """A sample statistic (n, contexts)."""
    return values(tree, "sample_stats", name)[0]


def values(tree: "xarray.DataTree", group: str, name: str) -> np.ndarray:
    """The values of a variable or coordinate of a group."""
    return np.asarray(tree[group].to_dataset()[name])


def log_weights(tree: "xarray.DataTree") -> LogWeights:
    """The log-weights that a tree was computed from."""
    return LogWeights(stat(tree, "log_policy"), stat(tree, "log_target"))


def headline(tree: "xarray.DataTree") -> str | None:
    """The feature that stands for the reward: ``reward``, else the first, else none."""
    names = [n.removeprefix("policy_") for n in diagnostics.estimates(tree) if "policy_" in n]
    return "reward" if "reward" in names else next(iter(names), None)


def exact(tree: "xarray.DataTree", name: str) -> float | None:
    """An exact value, where the outcomes could be listed."""
    value = tree["diagnostics"].attrs.get(f"exact_{name}")
    return None if value is None else float(value)


def judge(before: "xarray.DataTree", after: "xarray.DataTree") -> Verdict:
    """Whether both KLs fell (95% intervals below zero) and the reward rose, and on what grounds.

    The intervals rest on weights, so k-hat must be below 0.7 and log Z must not move; exact
    divergences, where the outcomes can be listed, need neither.
    """
    changes = diagnostics.compare(log_weights(before), log_weights(after))
    reasons = []
    for divergence, name in ((reverse_kl, "KL(π‖p)"), (forward_kl, "KL(p‖π)")):
        change = changes[divergence.name]
        sign = "below" if change.high < 0 else "not below"
        reasons.append((change.high < 0, f"{name} {_interval(change)}, {sign} zero"))
    reasons += _exactly(before, after) or _grounds(before, after, changes["log_z"])
    if (name := headline(after)) is not None:
        old, new = (diagnostics.estimates(t)[f"policy_{name}"].value for t in (before, after))
        reasons.append((new > old, f"E[{name}] from {old:.3f} to {new:.3f}"))
    return Verdict(all(ok for ok, _ in reasons), reasons)


def _exactly(before: "xarray.DataTree", after: "xarray.DataTree") -> list[tuple[bool, str]]:
    """The exact changes, or nothing."""
    out = []
    for divergence, name in ((reverse_kl, "KL(π‖p)"), (forward_kl, "KL(p‖π)")):
        old, new = exact(before, divergence.name), exact(after, divergence.name)
        if old is not None and new is not None:
            out.append((new < old, f"exact {name} from {old:.3f} to {new:.3f}"))
    return out


def _grounds(
    before: "xarray.DataTree", after: "xarray.DataTree", log_z: Estimate
) -> list[tuple[bool, str]]:
    """What must hold for the estimates to be believed."""
    khats = [float(values(t, "diagnostics", "pareto_khat")) for t in (before, after)]
    agree = abs(log_z.value) <= 4 * log_z.se + 1e-9
    return [
        (all(k < 0.7 for k in khats), f"Pareto k-hat {khats[0]:.2f} and {khats[1]:.2f}, limit 0.7"),
        (agree, f"log Z {log_z.value:+.3f} ± {log_z.se:.3f} apart: the same target seen from both"),
    ]


def _interval(e: Estimate) -> str:
    mark = (
        "" if e.reliable else " (not guaranteed to cover: k-hat ≥ 0.5, or too few effective draws)"
    )
    return f"changed by {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]{mark}"


def rows(before: "xarray.DataTree | None", after: "xarray.DataTree") -> list[Row]:
    """The before/after table; without a before, its columns stay empty."""
    trees = [after] if before is None else [before, after]
    changes = {}
    if before is not None:
        changes = diagnostics.compare(log_weights(before), log_weights(after), divergences=COMPARED)
    found = [diagnostics.estimates(tree) for tree in trees]
    names = [n.removeprefix("policy_") for n in found[-1] if n.startswith("policy_")]
    wanted = [(f"policy_{n}", f"E_π[{n}]") for n in names]
    wanted += [(f"target_{n}", f"E_p[{n}]") for n in names]
    wanted += [("kl_prior", "KL(π‖prior)")]
    wanted += [("reverse_kl", "KL(π‖p) reverse"), ("forward_kl", "KL(p‖π) forward")]
    wanted += [("jensen_shannon", "Jensen–Shannon"), ("total_variation", "total variation")]
    wanted += [("log_z", "log Z"), ("entropy", "entropy of π")]
    if any(f["acceptance"].value < 1 for f in found):
        wanted.append(("acceptance", "accepted"))
    out = []
    for key, label in wanted:
        cells = [_cell(f[key]) for f in found]
        change = changes.get(key)
        if change is None and before is not None and not key.startswith("target_"):
            change = _difference(found[0][key], found[1][key])
        out.append(_row(label, cells, "" if change is None else _change(change)))
        known = [v for v in (exact(tree, key) for tree in trees) if v is not None]
        if len(known) == len(trees):
            gap = f"{known[-1] - known[0]:+.3f}" if len(known) > 1 and key != "log_z" else ""
            out.append(_row("    exact", [f"{v:.3f}" for v in known], gap))
    return out + _weight_rows(trees)


def _weight_rows(trees: Sequence["xarray.DataTree"]) -> list[Row]:
    """How far the weights and the samples can be trusted."""
    cells: dict[str, list[str]] = {}
    for tree in trees:
        data = tree["diagnostics"]
        contexts = tree["diagnostics/contexts"].sizes["context"]
        n, ess = data.attrs["n"], float(values(tree, "diagnostics", "ess"))
        each = f"{n}" if contexts == 1 else f"{n} × {contexts} prompts"
        texts = {
            "draws": each,
            "ESS": f"{ess:.0f} ({ess / (n * contexts):.0%})",
            "Pareto k-hat": f"{float(values(tree, 'diagnostics', 'pareto_khat')):.2f}",
            **measuring.cells(tree),
            "sample − score": f"{data.attrs['max_sample_score_difference']:.1e} nats",
        }
        for name, text in texts.items():
            cells.setdefault(name, []).append(text)
    return [_row(name, texts, "") for name, texts in cells.items()]


class ContextRow(NamedTuple):
    """A prompt in the table of prompts, as text."""

    prompt: str
    ess: str
    khat: str
    log_z: str
    reverse_kl: str
    forward_kl: str
    reliable: bool


def context_rows(tree: "xarray.DataTree") -> list[ContextRow]:
    """Every prompt's weights and divergences, the least trusted first."""
    group = "diagnostics/contexts"
    column = lambda name: values(tree, group, name)
    names, ess, khat = column("context"), column("ess"), column("pareto_khat")
    found = {name: column(name) for name in ("log_z", "reverse_kl", "forward_kl")}
    n = tree["diagnostics"].attrs["n"]
    out = []
    for k in sorted(range(len(names)), key=lambda k: (-khat[k], ess[k])):
        cells = [_cell(Estimate(*v[:4, k], reliable=bool(v[4, k]))) for v in found.values()]
        share = f"{ess[k]:.0f} ({ess[k] / n:.0%})"
        trusted = bool(found["log_z"][4, k])
        out.append(ContextRow(str(names[k]), share, f"{khat[k]:.2f}", *cells, reliable=trusted))
    return out


def _row(label: str, cells: Sequence[str], change: str) -> Row:
    return Row(label, cells[0] if len(cells) > 1 else "", cells[-1], change)


def _cell(e: Estimate) -> str:
    if math.isnan(e.value):
        return "undefined"
    if not e.reliable:
        return f"{e.value:z.3f} (unreliable)"
    if e.low == e.high:
        return f"{e.value:z.3f}"
    return f"{e.value:z.3f} [{e.low:z.3f}, {e.high:z.3f}]"


def _change(e: Estimate) -> str:
    if not math.isfinite(e.value):
        return ""
    mark = "" if e.reliable else " (unreliable)"
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]{mark}"


def _difference(old: Estimate, new: Estimate) -> Estimate | None:
    """Of two means from independent draws, with a normal 95% interval."""
    if not (old.reliable and new.reliable and math.isfinite(new.value - old.value)):
        return None
    value, se = new.value - old.value, math.hypot(old.se, new.se)
    return Estimate(value, se, value - 1.96 * se, value + 1.96 * se, reliable=True)


def notes(before: "xarray.DataTree | None", after: "xarray.DataTree") -> list[str]:
    """The diagnostics' own advice."""
    out = []
    for name, tree in (("before: ", before), ("after: " if before is not None else "", after)):
        if tree is not None:
            out += [name + n for n in tree["diagnostics"].attrs["notes"].split("\n") if n]
    return out


class Sample(NamedTuple):
    """An outcome to read."""

    prompt: str
    completion: str
    reward: float | None


def samples(tree: "xarray.DataTree", lm: "CausalLM", count: int) -> list[Sample]:
    """The first outcomes, taken in turn from the first prompts."""
    import torch

    y = outcomes(tree)
    labels = [str(c) for c in values(tree, "diagnostics/contexts", "context")]
    name = headline(tree)
    rewards = None if name is None else values(tree, "features", name)[0]
    out = []
    per_prompt = min(len(y), -(-count // min(len(labels), count)))
    for i, k in [(i, k) for k in range(len(labels)) for i in range(per_prompt)][:count]:
        text = text_of(lm, torch.from_numpy(y[i, k]))
        prompt = "" if labels[k] == data.NO_PROMPT else labels[k]
        out.append(Sample(prompt, text, None if rewards is None else float(rewards[i, k])))
    return out


def text_of(lm: "CausalLM", ids: Any) -> str:
    """A continuation as text; its token ids, where there is no tokenizer."""
    if lm.tokenizer is not None:
        return str(lm.decode(ids)) or "(ends at once)"
    return " ".join(str(i) for i in ids[: int(lm.lengths(ids))].tolist())
