"""A laboratory for gradients of language models whose outcomes can be listed.

The statistics, the table and the plots are `infer_align.diagnostics.Comparison`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infer_align import _supports
from infer_align.diagnostics import Comparison, compare_gradients
from infer_align.diagnostics import _policy_gradients as listed_
from infer_align.estimators import Estimator, LogWeights, checked_update
from infer_align.spaces import Space
from infer_align.targets import Target, add_potential
from infer_align.torch._drawing import draw
from infer_align.torch.contexts import Contexts, bind
from infer_align.torch.pyro import Program

__all__ = ["compare_policy_gradients"]

ROWS = 16
"""Outcomes of one graph, when all ∇log π are taken."""
MAX_NUMBERS = 2**28
"""Of the table of all ∇log π: 2 GiB."""


def compare_policy_gradients(
    policy: Any,
    target: Target | Program,
    estimators: Mapping[str, Estimator],
    *,
    space: Space,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    n: int = 1000,
    outcomes: int = 16,
    proposal: Any = None,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    r"""Bias, variance and cost of the gradients that the core's estimators give a policy.

    .. math:: \hat g = \sum_{i,x} c_{ix} ∇\log π(y_{ix}|x), \qquad
              g = \sum_{y,x} \frac{∂L}{∂\log π(y|x)} ∇\log π(y|x)

    with the coefficients c of a batch that was drawn, and each estimator's own exact loss L over
    all outcomes: rows with other divergences have other exact gradients, and are compared by
    ``rel. sd``, noise to signal.

    Parameters
    ----------
    policy : CausalLM, or callable from contexts to a distribution
        It has ``named_parameters()``, unless ``parameters`` are given.
    target : Pyro program or Target
    estimators : mapping from label to Estimator
        Of `infer_align.estimators`. All see the same batches.
    space : Space
        Every outcome of the policy, as torch tensors; for a `CausalLM` padded by its first EOS:
        ``Space.sequences(V, T, eos=e, pad=e, xp=torch)``.
    prompts, columns
        Contexts, as for `infer_align.torch.fit`.
    parameters : mapping from name to tensor, optional
        In which the gradient is taken, P numbers in all. Default: all that are trained.
    n : int
        Gradients of each estimator, >= 2.
    outcomes : int
        Outcomes per prompt that one gradient is made of.
    proposal : callable from contexts to a distribution, optional
        Outcomes are drawn from it in place of the policy.
    seed : int
        The same seed gives the same numbers, times excepted.
    level : float
        Coverage of the intervals, at once over the components of a row.

    Returns
    -------
    infer_align.diagnostics.Comparison

    Requirements
    ------------
    N·prompts·P is at most 2²⁸; 1000 outcomes and 100,000 parameters, say. Estimators that remember
    go through 50 batches first. Time is that of drawing, weighing and differentiating one batch, as
    `fit` does; FLOPs are torch's count of its matrix products.

    Raises
    ------
    ValueError
        For a space that is not the policy's, too many parameters, and for what an estimator
        refuses; with its label.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> from infer_align import Space, estimators
    >>> from infer_align.torch import lab
    >>> logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    >>> policy = lambda: dist.Categorical(logits=logits)
    >>> prior = dist.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    >>> def program():
    ...     y = pyro.sample("y", prior)
    ...     pyro.factor("reward", 2.0 * y)
    >>> found = lab.compare_policy_gradients(policy, program, {
    ...     "none": estimators.reinforce(baseline=estimators.none()),
    ...     "loo": estimators.reinforce()}, space=Space(torch.arange(3)), outcomes=4,
    ...     parameters={"logits": logits})
    >>> found["loo"].total_variance < found["none"].total_variance
    True
    >>> [row.covers_zero for row in found.rows]
    [True, True]
    """
    listed_.checked(estimators, n, outcomes)
    bound, contexts = bind(target, prompts, columns)
    named = _parameters(policy, parameters)
    bench = _Bench(policy, proposal, bound, contexts, space, list(named.values()), outcomes)
    table, slopes = bench.listed(estimators)
    generator = torch.Generator().manual_seed(seed)
    y, _ = draw(bench.source(), (n + listed_.WARM_UP) * outcomes, generator)
    index = space.index(y).reshape(-1, outcomes, *table.log_policy.shape[1:])
    states = {label: e.init() for label, e in estimators.items()}
    steps = torch.Generator().manual_seed(seed)

    def step(label: str) -> None:
        states[label] = bench.gradient(estimators[label], states[label], steps)

    seconds = listed_.timed(estimators, step)
    measured = {}
    for label, e in estimators.items():
        with FlopCounterMode(display=False) as counter:
            step(label)
        flops = float(counter.get_total_flops()) or float("nan")
        measured[label] = listed_.measurement(
            table, label, e, index, slopes[label], seconds[label], flops
        )
    names = [
        f"{name}[{', '.join(map(str, at))}]" if p.ndim else name
        for name, p in named.items()
        for at in np.ndindex(tuple(p.shape))
    ]
    return compare_gradients(measured, names=names, source=listed_.source(len(space)), level=level)


def _parameters(policy: Any, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if parameters is None:
        if not hasattr(policy, "named_parameters"):
            raise ValueError(
                f"the policy {policy!r} has no named_parameters(); say in which tensors to "
                'differentiate, parameters={"name": tensor}'
            )
        parameters = {k: p for k, p in policy.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            "there is no parameter to differentiate in; a CausalLM gets them with .trainable()"
        )
    for name, p in parameters.items():
        if not p.requires_grad:
            raise ValueError(f"parameter {name!r} does not require a gradient; leave it out")
    return dict(parameters)


class _Bench:
    """One policy, target and space; see `compare_policy_gradients`."""

    def __init__(
        self, policy: Any, proposal: Any, target: Target, contexts: Contexts, space: Space,
        parameters: list[Tensor], outcomes: int,
    ):  # fmt: skip
        self.policy, self.proposal, self.target, self.space = policy, proposal, target, space
        self.parameters, self.outcomes = parameters, outcomes
        every = torch.arange(len(contexts))
        self.of_policy, self.of_target = contexts.of_policy(every), contexts.of_target(every)
        self.contexts, self.every = contexts, every

    def source(self) -> Any:
        """What outcomes are drawn from."""
        return (self.policy if self.proposal is None else self.proposal)(*self.of_policy)

    def listed(self, estimators: Mapping[str, Estimator]) -> tuple[listed_.Listed, dict[str, Any]]:
        """Everything about every outcome, and the slopes of each estimator's loss."""
        with torch.no_grad():
            log_policy = self.space.log_prob(self.policy(*self.of_policy)).double()
            log_proposal = None
            if self.proposal is not None:
                log_proposal = self.space.log_prob(self.proposal(*self.of_policy)).double()
            # Added in double precision, as `gradient` does: rewards may have an offset.
            prior = self.space.log_prob(self.target.given(*self.of_target)).double()
            potential = self.space.log_potential(self.target, *self.of_target).double()
            log_density = add_potential(prior, potential, self.target.name)
        slopes: dict[str, Any] = {}
        for label, e in estimators.items():
            if not listed_.has_exact(e, off_policy=log_proposal is not None):
                slopes[label] = None
                continue
            x = log_policy.clone().requires_grad_()
            (slope,) = torch.autograd.grad(e.loss(x, log_density, log_proposal).mean(), x)
            slopes[label] = slope.cpu().numpy()
        host = lambda x: x.cpu().numpy()
        table = listed_.Listed(
            self._scores(log_policy), host(log_policy), host(log_density),
            None if log_proposal is None else host(log_proposal),
        )  # fmt: skip
        return table, slopes

    def _scores(self, log_policy: Tensor) -> np.ndarray:
        """∇log π of every outcome in every context: one backward pass each."""
        size = sum(p.numel() for p in self.parameters)
        shape = (*log_policy.shape, size)
        if (numbers := log_policy.numel() * size) > MAX_NUMBERS:
            raise ValueError(
                f"{log_policy.numel()} outcomes and {size} parameters make {numbers:,} numbers, "
                f"and the table may have {MAX_NUMBERS:,}; choose fewer by parameters="
            )
        scores = np.zeros(shape)
        distribution = self.policy(*self.of_policy)
        spread = self.space.outcomes[:, *(None,) * (log_policy.ndim - 1)]
        for start in range(0, len(self.space), ROWS):
            rows = slice(start, start + ROWS)
            event = self.space.outcomes.shape[1:]
            some = spread[rows].expand(-1, *log_policy.shape[1:], *event)
            log_prob = _supports.log_prob(distribution, some)
            for at in np.ndindex(tuple(log_prob.shape)):
                if torch.isfinite(log_prob[at]):
                    flat = self._flat(log_prob[at], retain=True)
                    scores[(start + at[0], *at[1:])] = flat.cpu().double().numpy()
        return scores

    def gradient(
        self, estimator: Estimator, state: dict[str, Any], generator: torch.Generator
    ) -> dict[str, Any]:
        """The whole way of a fit's step to the gradient; returns the estimator's new state."""
        y, log_drawn = draw(self.source(), self.outcomes, generator)
        log_prob = _supports.log_prob(self.policy(*self.of_policy), y)
        with torch.no_grad():
            prior = _supports.log_prob(self.target.given(*self.of_target), y).double()
            potential = self.target.log_potential(y, *self.of_target).double()
            density = add_potential(prior, potential, self.target.name)
        proposal = None if self.proposal is None else log_drawn.double()
        ids = self.contexts.ids(self.every, density)
        weights = LogWeights(log_prob.detach().double(), density, proposal, ids)
        update = checked_update(estimator, state, weights)
        c = update.coefficients.to(log_prob)
        self._flat((c * torch.where(c != 0, log_prob, 0.0)).sum(), retain=False)
        return update.state

    def _flat(self, of: Tensor, *, retain: bool) -> Tensor:
        parts = torch.autograd.grad(
            of, self.parameters, retain_graph=retain, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in parts])
