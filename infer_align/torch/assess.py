"""Measure how close a policy is to a target, on fresh draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infer_align import _supports, diagnostics
from infer_align._arguments import count
from infer_align._arguments import features as checked_features
from infer_align._numerics import own
from infer_align.diagnostics._unseen import if_prior
from infer_align.estimators import LogWeights
from infer_align.targets import Target, add_potential, check_provides
from infer_align.torch._drawing import as_numbers, draw
from infer_align.torch.contexts import bind, check_callable
from infer_align.torch.continuations import Continuations
from infer_align.torch.pyro import Program

if TYPE_CHECKING:
    import xarray

__all__ = ["Draws", "assess", "collect"]

Feature = Callable[..., Tensor]
CHUNK = 128
"""Outcomes per prompt drawn at once."""


class Draws(NamedTuple):
    """Outcomes of a policy with all that `infer_align.diagnostics` needs to know of them."""

    outcomes: Any
    weights: LogWeights
    log_prior: Tensor
    log_potential: Tensor
    features: dict[str, Tensor]
    sample_score_difference: float
    log_potential_se: Tensor | None = None
    log_bound: Any = None
    """Largest log P/q there can be, where the draws are of the target's prior and it is known."""
    sample_score_limit: float | None = None

    def assess(self, *, contexts: Sequence[str] | None = None) -> "xarray.DataTree":
        """These draws as an assessed ArviZ tree.

        Parameters
        ----------
        contexts : sequence of str, optional
            Labels of the contexts.
        """
        return diagnostics.assess(
            self.weights,
            log_prior=self.log_prior,
            log_target_se=self.log_potential_se,
            features=self.features,
            contexts=contexts,
            outcomes=self.outcomes,
            max_sample_score_difference=self.sample_score_difference,
            log_bound=self.log_bound,
            withdrawn=self._withdrawn(),
        )

    def _withdrawn(self) -> list[str]:
        """Why no interval can be claimed, if the sampler has another law than the scorer."""
        gap, limit = self.sample_score_difference, self.sample_score_limit
        if limit is None or not gap > limit:
            return []
        return [
            f"the sampler's and the scorer's log-probabilities differ by up to {gap:.2g} nats, "
            f"where rounding explains {limit:.2g}: the draws are not from the law that scores "
            "them; run the model in float32, or a model of another class"
        ]


@torch.no_grad()
def collect(
    policy: Any,
    target: Target | Program,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    n: int = 1024,
    features: Mapping[str, Feature] | None = None,
    proposal: Any = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Draws:
    """Draw outcomes of a policy and evaluate the target on them.

    Parameters
    ----------
    policy : callable from contexts to a distribution
    target : Pyro program or Target
    prompts, columns
        Contexts, as for `infer_align.torch.fit`.
    n : int
        Outcomes per prompt.
    features : mapping from name to callable, optional
        ``feature(y, *contexts) -> (n, *contexts)``, to be averaged under policy and target.
    proposal : callable from contexts to a distribution, optional
        Draw from it in place of the policy, and weight.
    seed : int
        Of the draws; take another one than the fit's.
    progress : callable, optional
        Called with the number of outcomes per prompt drawn so far.

    Returns
    -------
    Draws
        Float64 on the CPU. ``sample_score_difference`` is the largest gap between the sampler's
        and the scorer's log-probability, in nats, over the first 128 outcomes of each prompt and
        one of every further 128; NaN where a language model's own sampler was not used. Beyond
        ``sample_score_limit``, what rounding explains, `Draws.assess` claims no interval.
    """
    if count("n", n) < 2:
        raise ValueError(f"an assessment needs at least 2 outcomes per prompt, got n={n}")
    n, seed = int(n), count("seed", seed, low=0)
    check_callable("the policy", policy)
    if proposal is not None:
        check_callable("the proposal", proposal)
    features = checked_features(features)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of a number, got {type(progress).__name__}")
    bound, contexts = bind(target, prompts, columns)
    check_provides(bound, frozenset({"log_density"}), "assess")
    every = torch.arange(len(contexts))
    generator = torch.Generator().manual_seed(seed)
    distribution = policy(*contexts.of_policy(every))
    source = distribution if proposal is None else proposal(*contexts.of_policy(every))
    parts: list[dict[str, Tensor]] = []
    drawn: list[Any] = []
    gap = float("nan")
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        y, log_drawn = draw(source, size, generator)
        drawn.append(y)
        part = {"drawn": log_drawn.double()}
        if proposal is not None:
            part["policy"] = _supports.log_prob(distribution, own(y)).double()
        elif isinstance(distribution, Continuations):
            # The sampler's and the scorer's numbers must agree: the first chunk is scored whole,
            # and an outcome of every other, since each is batched anew.
            some = slice(None) if start == 0 else slice(size - 1, size)
            gap = np.fmax(gap, _gap(distribution, y[some], part["drawn"][some]))
        part |= _evaluated(bound, y, contexts.of_target(every), features)
        parts.append(part)
        if progress is not None:
            progress(start + size)
    all_ = {k: torch.cat([p[k] for p in parts]).cpu() for k in parts[0]}
    weights = LogWeights(
        policy=all_["drawn"] if proposal is None else all_["policy"],
        target=add_potential(all_["prior"], all_["potential"], bound.name),
        proposal=None if proposal is None else all_["drawn"],
        context=contexts.ids(every, all_["drawn"]),
    )
    named = {k.removeprefix("feature "): v for k, v in all_.items() if k.startswith("feature ")}
    return Draws(
        _joined(drawn), weights, all_["prior"], all_["potential"], named, float(gap),
        all_.get("potential_se"), if_prior(bound.log_bound, all_["drawn"], all_["prior"]),
        distribution.sample_score_limit if isinstance(distribution, Continuations) else None,
    )  # fmt: skip


def _evaluated(
    target: Target, y: Any, arguments: tuple[Any, ...], features: Mapping[str, Feature]
) -> dict[str, Tensor]:
    """All that the target and the features say of outcomes, each asked on a copy of its own."""
    prior = target.given(*arguments)
    out = {
        "prior": as_numbers(_supports.log_prob(prior, own(y)), f"the prior of {target.name!r}"),
        "potential": as_numbers(
            target.log_potential(y, *arguments), f"the potential of {target.name!r}"
        ),
    }
    if target.log_potential_se is not None:
        spread = target.log_potential_se(y, *arguments)
        out["potential_se"] = as_numbers(spread, f"the standard error of {target.name!r}")
    for name, feature in features.items():
        values = as_numbers(feature(own(y), *arguments), f"feature {name!r}")
        if values.shape != out["prior"].shape:
            raise ValueError(
                f"feature {name!r} has shape {tuple(values.shape)} for outcomes of shape "
                f"{tuple(out['prior'].shape)}; give one number an outcome: (n, *contexts)"
            )
        out[f"feature {name}"] = values
    return out


def _gap(distribution: Continuations, y: Tensor, drawn: Tensor) -> float:
    return float((distribution.log_prob(y).double() - drawn).abs().max())


def _joined(parts: Sequence[Any]) -> Any:
    """Outcomes of all chunks, on the CPU."""
    if isinstance(parts[0], dict):
        return {site: torch.cat([p[site] for p in parts]).cpu() for site in parts[0]}
    return torch.cat([*parts]).cpu()


def assess(
    policy: Any,
    target: Target | Program,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    n: int = 1024,
    features: Mapping[str, Feature] | None = None,
    proposal: Any = None,
    seed: int = 0,
) -> "xarray.DataTree":
    """Estimates of log Z, divergences, ESS, k̂ and feature means from fresh draws.

    Parameters
    ----------
    policy : callable from contexts to a distribution
    target : Pyro program or Target
    prompts, columns, n, features, proposal, seed
        As for `collect`.

    Returns
    -------
    xarray.DataTree
        See `infer_align.diagnostics.assess`; ``diagnostics.table(tree)`` prints it.

    Examples
    --------
    >>> import pyro, torch, pyro.distributions as dist
    >>> from infer_align import diagnostics
    >>> from infer_align.torch import assess
    >>> prior = dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64))
    >>> def program():
    ...     y = pyro.sample("y", prior)
    ...     pyro.factor("reward", 1.0 * y)
    >>> tree = assess(lambda: prior, program, n=1000)
    >>> round(float(diagnostics.estimates(tree)["log_z"].value), 1)     # log((1 + e)/2)
    0.6
    """
    draws = collect(
        policy, target, prompts, columns, n=n, features=features, proposal=proposal, seed=seed
    )
    labels = None if prompts is None else [_label(p) for p in prompts]
    return draws.assess(contexts=labels)


def _label(prompt: Any) -> str:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping):
        return str(prompt[-1].get("content", prompt))
    return str(prompt)
