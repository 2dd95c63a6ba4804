"""What an assessment measures besides weights: exact values, diversity, drift, positions.

All of it goes into the tree, so that tables and reports are made of what is on disk.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from infer_align import diagnostics
from infer_align.cli.job import Job
from infer_align.divergences import forward_kl, jensen_shannon, reverse_kl, total_variation

if TYPE_CHECKING:
    import torch
    import xarray

    from infer_align.exact import RewardLaw
    from infer_align.spaces import Space
    from infer_align.torch import CausalLM, Draws

COMPARED = (reverse_kl, forward_kl, jensen_shannon, total_variation)
ENUMERABLE = 20_000
"""Most outcomes per prompt of which exact divergences are computed."""
EVERY = 1_000_000
"""Most outcomes of all prompts of which exact divergences are computed."""
CURVE = 4_000
"""Most outcomes of all prompts of which the exact frontier is computed."""
ROWS = 512
"""Most outcomes of all prompts that are compared token by token."""


class Listing(NamedTuple):
    """All outcomes, with their log-probabilities (N, *contexts)."""

    space: "Space"
    policy: "torch.Tensor"
    prior: "torch.Tensor"
    density: "torch.Tensor"

    @property
    def log_z(self) -> "torch.Tensor":
        """Exact, (*contexts)."""
        return self.density.logsumexp(0)

    @property
    def target(self) -> "torch.Tensor":
        """Normalised log p."""
        return self.density - self.log_z


def measure(tree: "xarray.DataTree", job: Job, policy: "CausalLM", drawn: "Draws") -> None:
    """Add everything to an assessed tree, in place."""
    import xarray

    listing = _listing(job, policy)
    found = _diversity(tree, job.lm) | _drift(drawn, policy)
    groups = {"positions": _positions(job, policy, drawn, listing)}
    if listing is not None:
        found |= _exact(listing) | _coverage(listing, drawn)
        groups["exact"] = {"log_z": ("context", listing.log_z.numpy().reshape(-1))}
        groups["frontier"] = _frontier(tree, listing)
    tree["diagnostics"].attrs.update(found)
    for name, data in groups.items():
        if data:
            tree[name] = xarray.DataTree(xarray.Dataset(data))


def _listing(job: Job, policy: "CausalLM") -> Listing | None:
    """All outcomes, if they are few and the target accepts some for every prompt."""
    import torch

    from infer_align.spaces import Space
    from infer_align.torch.contexts import bind

    lm = job.lm
    eos = lm.eos_token_ids
    outcomes = lm.vocab_size**lm.max_new_tokens
    if outcomes > ENUMERABLE or outcomes * len(job.labels) > EVERY:
        return None
    space = Space.sequences(
        lm.vocab_size, lm.max_new_tokens, eos=eos or None, pad=eos[0] if eos else 0, xp=torch
    )
    target, contexts = bind(job.program, job.prompts, job.columns)
    every = torch.arange(len(contexts))
    arguments = contexts.of_policy(every)
    y = _repeated(space.outcomes, job)
    with torch.no_grad():
        out = Listing(
            space,
            space.log_prob(policy(*arguments)).double().cpu(),
            space.log_prob(lm(*arguments)).double().cpu(),
            target.log_density(y, *contexts.of_target(every)).double().cpu(),
        )
    return out if bool(torch.isfinite(out.log_z).all()) else None


def _repeated(outcomes: "torch.Tensor", job: Job) -> "torch.Tensor":
    """The listed outcomes for every prompt."""
    if job.prompts is None:
        return outcomes
    return outcomes[:, None, :].expand(-1, len(job.prompts), -1)


def _exact(listing: Listing) -> dict[str, float]:
    """Exact divergences, averaged over prompts."""
    out = {"exact_log_z": float(listing.log_z.mean())}
    for divergence in COMPARED:
        value = divergence(listing.policy, listing.target)
        out[f"exact_{divergence.name}"] = float(value.mean())
    return out


def _coverage(listing: Listing, drawn: "Draws") -> dict[str, float]:
    """Mass and modes that the draws cover, beside what draws of the target would."""
    at = listing.space.index(drawn.outcomes)
    found = diagnostics.mode_coverage(listing.target, at)
    names = ("mass", "modes", "mass_of_target", "modes_of_target", "n_modes")
    return {f"coverage_{name}": float(np.mean(getattr(found, name))) for name in names}


@dataclass(frozen=True)
class _MeanLaw:
    """Tilts of several prompts at one temperature: `exact.tilts` takes it for a law."""

    laws: "list[RewardLaw]"

    def cumulants(self, theta: Any) -> tuple[Any, ...]:
        """Means of Λ and its derivatives."""
        return tuple(np.mean([law.cumulants(theta) for law in self.laws], axis=0))

    def kl_of_tilt(self, theta: Any) -> Any:
        """Mean KL."""
        return np.mean([law.kl_of_tilt(theta) for law in self.laws])

    @property
    def reward_range(self) -> tuple[float, float]:
        """Means of the ends."""
        low, high = np.mean([law.reward_range for law in self.laws], axis=0)
        return float(low), float(high)

    @property
    def kl_max(self) -> float:
        """Mean of the largest KLs."""
        return float(np.mean([law.kl_max for law in self.laws]))

    def known(self) -> "_MeanLaw":
        """Itself: its numbers are plain."""
        return self


def _frontier(tree: "xarray.DataTree", listing: Listing) -> dict[str, Any]:
    """The most mean log-potential that a KL buys, from 0 to beyond policy and target."""
    from infer_align.exact import RewardLaw
    from infer_align.exact.tilts import frontier

    log_prior = listing.prior.numpy().reshape(len(listing.space), -1)
    density = listing.density.numpy().reshape(log_prior.shape)
    possible = log_prior > -math.inf
    if log_prior.size > CURVE or not np.isfinite(density[possible]).all():
        return {}
    potential = np.where(possible, density - np.where(possible, log_prior, 0.0), 0.0)
    laws = [
        RewardLaw.of_outcomes(x, p - np.logaddexp.reduce(p), tolerance=1e-9)
        for x, p in zip(potential.T, log_prior.T, strict=True)
    ]
    law = _MeanLaw(laws)
    reached = [law.kl_of_tilt(1.0), diagnostics.estimates(tree)["kl_prior"].value]
    top = min(1.4 * max(reached), law.kl_max)
    curve = frontier(law, top * np.linspace(0, 1, 33) ** 2)
    at_target = {
        "target_kl": ((), law.kl_of_tilt(1.0)),
        "target_log_potential": ((), law.cumulants(1.0)[1]),
    }
    return {"kl": ("point", curve.kl), "log_potential": ("point", curve.reward), **at_target}


def _diversity(tree: "xarray.DataTree", lm: "CausalLM") -> dict[str, float]:
    """Over token ids; self-BLEU where sacrebleu is installed."""
    rows = token_lists(tree, lm)
    out = {f"distinct_{size}": diagnostics.distinct_n(rows, size) for size in (1, 2)}
    try:
        out["self_bleu"] = diagnostics.self_bleu(rows)
    except ModuleNotFoundError:
        pass
    return out


def _drift(drawn: "Draws", policy: "CausalLM") -> dict[str, float]:
    """Perplexity of the draws under the prior, and KL per token, with their ends."""
    found = diagnostics.drift(
        drawn.weights.policy, drawn.log_prior, policy.lengths(drawn.outcomes).cpu()
    )
    out = {}
    for name, e in zip(found._fields, found, strict=True):
        out |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return out


def _positions(
    job: Job, policy: "CausalLM", drawn: "Draws", listing: Listing | None
) -> dict[str, Any]:
    """KL to the prior and entropy by position: drawn tokens, full vocabulary, exact."""
    from infer_align.torch import per_token

    arguments = () if job.prompts is None else (job.prompts,)
    laws = policy(*arguments), job.lm(*arguments)
    most = max(2, ROWS // len(job.labels))
    tokens = per_token(*laws, drawn.outcomes[:most])
    curves = {
        "kl": diagnostics.by_position(tokens.kl, tokens.lengths),
        "kl_drawn": diagnostics.by_position(tokens.log_policy - tokens.log_prior, tokens.lengths),
        "entropy": diagnostics.by_position(tokens.entropy, tokens.lengths),
        "entropy_prior": diagnostics.by_position(tokens.entropy_prior, tokens.lengths),
    }
    if listing is not None and listing.policy.numel() <= CURVE:
        every = per_token(*laws, _repeated(listing.space.outcomes, job))
        for name in ("kl", "entropy"):
            curves[f"{name}_exact"] = diagnostics.by_position(
                getattr(every, name), every.lengths, log_prob=listing.policy
            )
    out: dict[str, Any] = {}
    for name, curve in curves.items():
        for part, values in zip(curve._fields, curve, strict=True):
            out[f"{name}_{part}"] = ("position", values)
    return out


def position_curve(tree: "xarray.DataTree", name: str) -> diagnostics.ByPosition | None:
    """A curve that `measure` put into the tree."""
    if "positions" not in tree.children or f"{name}_value" not in tree["positions"].data_vars:
        return None
    data = tree["positions"].to_dataset()
    parts = (np.asarray(data[f"{name}_{part}"]) for part in diagnostics.ByPosition._fields)
    return diagnostics.ByPosition(*parts)


def token_lists(tree: "xarray.DataTree", lm: "CausalLM") -> list[list[int]]:
    """Token ids of all outcomes, EOS and padding left out."""
    import torch

    values = np.asarray(tree["outcomes"].to_dataset()["y"])[0]
    y = torch.from_numpy(values.reshape(-1, lm.max_new_tokens))
    kept = []
    for row, length in zip(y.tolist(), lm.lengths(y).tolist(), strict=True):
        kept.append([t for t in row[:length] if t not in lm.eos_token_ids])
    return kept


def cells(tree: "xarray.DataTree") -> dict[str, str]:
    """Rows of the table, label → text, of what was measured here."""
    found = tree["diagnostics"].attrs
    out = {f"distinct-{size}": f"{found[f'distinct_{size}']:.3f}" for size in (1, 2)}
    if "self_bleu" in found:
        out["self-BLEU"] = f"{found['self_bleu']:.3f}"
    for name, label, digits in (
        ("perplexity", "perplexity under the prior", 2),
        ("kl_per_token", "KL(π‖prior) per token", 4),
    ):
        if name in found:
            value, low, high = (found[name + end] for end in ("", "_low", "_high"))
            out[label] = f"{value:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"
    if "coverage_mass" in found:
        for name, label in (("mass", "target mass drawn"), ("modes", "modes drawn")):
            here, best = found[f"coverage_{name}"], found[f"coverage_{name}_of_target"]
            count = "" if name == "mass" else f" of {found['coverage_n_modes']:.0f}"
            out[label] = f"{here:.1%}{count} (draws of p: {best:.1%})"
    return out
