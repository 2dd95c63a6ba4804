"""Fit a policy to a target: a generator of steps.

The caller owns the loop, leaves it when it likes and logs what it likes. On-policy, a step is one
sampling pass (which also gives log π), one scoring pass of the prior, one evaluation of the
potential, and one forward and backward pass of the policy. The coefficients are computed once
for the whole batch before the first backward pass, so micro-batches change nothing.
"""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infer_align import _supports
from infer_align._arguments import count, instance
from infer_align._numerics import own
from infer_align._threads import alone
from infer_align.diagnostics import batch_metrics
from infer_align.diagnostics._batch import never_moved
from infer_align.estimators import Estimator, LogWeights, checked_update
from infer_align.targets import Empirical, Target, add_potential
from infer_align.torch._definition import (
    check_policy,
    compare,
    describe_contexts,
    describe_optimizer,
    describe_scheduler,
    fingerprint,
)
from infer_align.torch._drawing import (
    Parts,
    as_numbers,
    draw,
    log_prob_in_parts,
    one_part,
    tokens,
)
from infer_align.torch._steps import (
    check_clipping,
    check_per_step,
    check_scheduler,
    make_optimizer,
    trainable,
)
from infer_align.torch._support import refuse_moving_support
from infer_align.torch.contexts import Contexts, bind, check_callable
from infer_align.torch.demonstrations import draw_data, fits_samples
from infer_align.torch.pyro import Program

__all__ = ["FitState", "Step", "fit"]


class FitState(NamedTuple):
    """All that a fit needs, beside the policy's parameters, to go on from here."""

    index: int
    optimizer: torch.optim.Optimizer
    scheduler: Any
    generators: dict[str, torch.Generator]
    estimator: dict[str, Any]
    batch: dict[str, Any] | None
    definition: dict[str, Any]
    """What defines the fit: prompts, n, seed, estimator, ... A resumed one is compared with it."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors, for `infer_align.torch.checkpoints`."""
        return {
            "index": self.index,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generators": {k: g.get_state() for k, g in self.generators.items()},
            "estimator": self.estimator,
            "batch": self.batch,
            "definition": self.definition,
            "parameters": fingerprint(p for g in self.optimizer.param_groups for p in g["params"]),
        }


class Step(NamedTuple):
    """One optimiser step.

    ``outcomes`` are those of the batch, ``(n, *contexts, ...)``, or a dict of them by site.
    ``metrics`` are numbers about the batch *before* the update: ``log_potential`` (of a tilt
    reward/β), ``acceptance``, ``kl_prior``, ``reverse_kl``, ``forward_kl``, ``log_z`` and ``ess``,
    as `infer_align.diagnostics.batch_metrics` gives them; ``grad_norm``, ``skipped``,
    ``learning_rate``, ``tokens``, and ``seconds_`` of each phase. A fit to samples has
    ``cross_entropy`` (mean −log π of the batch, nats) in place of the first seven.
    """

    index: int
    outcomes: Any
    weights: LogWeights
    metrics: dict[str, float]
    state: FitState


def fit(
    policy: Any,
    target: Target | Program,
    estimator: Estimator,
    *,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    n: int = 64,
    steps: int = 100,
    prompts_per_step: int | None = None,
    learning_rate: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    max_grad_norm: float | None = 1.0,
    token_budget: int | None = None,
    proposal: Any = None,
    reuse: int = 1,
    seed: int = 0,
    resume: Mapping[str, Any] | None = None,
) -> Iterator[Step]:
    """Fit a policy to a target with an estimator's gradient, step by step.

    Parameters
    ----------
    policy : CausalLM, or module that is a callable from contexts to a distribution
        What is fitted, in place. It has ``parameters()``. The bounds of its support do not move
        with them (``Uniform(0, t)``): the gradient is a score function, which is wrong there.
    target : Pyro program or Target
    estimator : Estimator
        One that requires samples (``maximum_likelihood``) draws its batch from the target: from
        ``demonstrations``, or a ``teacher``.
    prompts : list, optional
        Contexts; ``None`` for an unconditional target.
    columns : mapping from name to list, optional
        Data columns, one entry a prompt, passed to the program's arguments of the same names.
    n : int
        Outcomes drawn per prompt and step.
    steps : int
        Optimiser steps in all, counted from 0 also after a resume.
    prompts_per_step : int, optional
        Prompts drawn without replacement at each step. Default: all of them.
    learning_rate : float
        Of the default optimiser, AdamW without weight decay. Default 2e-4.
    optimizer : torch.optim.Optimizer, optional
        Over the policy's trainable parameters, all of them and no other.
    scheduler : torch learning-rate scheduler, optional
        Of the optimiser given. Stepped after each optimiser step; a skipped batch takes none.
    max_grad_norm : float, optional
        The gradient's L2 norm is clipped here, above 0; ``None`` for no clipping.
    token_budget : int, optional
        Largest number of tokens of one forward and backward pass. Changes no gradient.
    proposal : callable from contexts to a distribution, optional
        Outcomes are drawn from it in place of the policy, and importance-weighted.
    reuse : int
        Optimiser steps on each batch. After the first the batch is off-policy, with the
        log-probabilities it was drawn with as the proposal's.
    seed : int
        Every role (sampling, prompts) has a generator of its own, made from it.
    resume : mapping, optional
        ``FitState.state_dict()`` of an earlier fit with the same arguments (``steps`` may
        be others), and the policy of that step.

    Yields
    ------
    Step

    Raises
    ------
    TypeError, ValueError
        For arguments that cannot be right, a policy whose support moves with its parameters (at the
        first step), a state of another fit (each difference is named), a target that does not
        provide what the estimator requires, log-weights that the estimator refuses, a sampler that
        disagrees with the scorer, and for a gradient that is not finite. The policy then is as
        after the last step yielded.

    Warns
    -----
    UserWarning
        At the end, if every step was skipped; at a resume, if a schedule of other ``steps`` goes
        on.
    """
    n, steps, reuse = count("n", n), count("steps", steps), count("reuse", reuse)
    seed = count("seed", seed, low=0)
    token_budget = None if token_budget is None else count("token_budget", token_budget)
    instance("the estimator", estimator, Estimator, "f_dpg(divergences.jensen_shannon)")
    check_callable("the policy", policy, fitted=True)
    if proposal is not None:
        check_callable("the proposal", proposal)
    bound, contexts = bind(target, prompts, columns)
    from_target = fits_samples(bound, estimator, proposal, prompts)
    parameters = trainable(policy)
    check_scheduler(scheduler, optimizer)
    made = make_optimizer(parameters, optimizer, learning_rate)
    run = _Fit(
        policy=policy,
        target=bound,
        contexts=contexts,
        estimator=estimator,
        proposal=proposal,
        parameters=parameters,
        optimizer=made,
        scheduler=scheduler,
        generators={
            role: torch.Generator().manual_seed(seed + k * 2**32)
            for k, role in enumerate(("sampling", "prompts"))
        },
        n=n,
        prompts_per_step=check_per_step(prompts_per_step, len(contexts)),
        max_grad_norm=check_clipping(max_grad_norm),
        token_budget=token_budget,
        estimator_state=estimator.init(),
        from_target=from_target,
    )
    run.definition = run.define(seed, steps, reuse)
    first = 0 if resume is None else run.restore(resume)
    return run.steps(first, steps, reuse)


@dataclass
class _Batch:
    """Outcomes as they were drawn, and what does not change while they are reused."""

    ids: Tensor
    outcomes: Any
    log_drawn: Tensor
    log_prior: Tensor
    log_potential: Tensor
    log_density: Tensor


@dataclass
class _Fit:
    """The moving parts of `fit`."""

    policy: Any
    target: Target
    contexts: Contexts
    estimator: Estimator
    proposal: Any
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    generators: dict[str, torch.Generator]
    n: int
    prompts_per_step: int | None
    max_grad_norm: float | None
    token_budget: int | None
    estimator_state: dict[str, Any]
    from_target: bool
    """Whether the batch is drawn from the target's samples, in place of the policy."""
    definition: dict[str, Any] = field(default_factory=dict)
    batch: _Batch | None = None

    def steps(self, first: int, last: int, reuse: int) -> Iterator[Step]:
        """The generator that `fit` returns once its arguments are checked."""
        skipped, accepted = 0.0, 0.0
        for index in range(first, last):
            with alone():
                step = self.step(index, fresh=index % reuse == 0)
            skipped += step.metrics["skipped"]
            accepted += step.metrics.get("acceptance", 1.0)
            yield step
        if first < last and skipped == last - first:
            text = never_moved(self.target.name, last - first, accepted / (last - first))
            warnings.warn(text, UserWarning, stacklevel=2)

    def define(self, seed: int, steps: int, reuse: int) -> dict[str, Any]:
        """What makes this fit the one it is, as plain values."""
        return {
            "n": self.n, "seed": seed, "reuse": reuse, "steps": steps,
            "prompts_per_step": self.prompts_per_step, "max_grad_norm": self.max_grad_norm,
            "estimator": self.estimator.name, "target": self.target.name,
            "proposal": self.proposal is not None,
            **describe_contexts(self.contexts.prompts, self.contexts.columns),
            "optimizer": describe_optimizer(self.optimizer, self.scheduler),
            "scheduler": describe_scheduler(self.scheduler),
            "shapes": [list(p.shape) for p in self.parameters],
        }  # fmt: skip

    def step(self, index: int, *, fresh: bool) -> Step:
        """Draw (or reuse) a batch, compute its coefficients, and descend."""
        clock = _Clock()
        if fresh or self.batch is None:
            self.batch = self._draw(clock)
        batch = self.batch
        distribution = self.policy(*self.contexts.of_policy(batch.ids))
        refuse_moving_support(distribution, self.parameters)
        on_policy = fresh and self.proposal is None and not self.from_target
        parts = log_prob_in_parts(distribution, batch.outcomes, self.token_budget)
        if on_policy:
            log_policy = batch.log_drawn.clone()
        else:
            log_policy, parts = self._score(distribution, batch, parts)
        clock.lap("score")
        weights = LogWeights(
            policy=log_policy,
            target=batch.log_density.clone(),
            proposal=None if on_policy else batch.log_drawn.clone(),
            context=self.contexts.ids(batch.ids, log_policy),
        )
        update = checked_update(self.estimator, self.estimator_state, weights)
        coefficients, info = update.coefficients, update.info
        skipped = bool((coefficients == 0).all())
        if self.from_target:
            metrics = {"cross_entropy": -float(log_policy.mean())}
        else:
            metrics = batch_metrics(weights, batch.log_prior, batch.log_potential)
        reported = ("undefined", "coefficient_bias")
        metrics |= {k: float(info[k]) for k in reported if k in info}
        if skipped:
            metrics["grad_norm"] = 0.0
        else:
            limit = getattr(distribution, "sample_score_limit", math.inf)
            metrics |= self._descend(parts, coefficients, log_policy, limit)
        self.estimator_state = update.state
        clock.lap("update")
        metrics |= {"skipped": float(skipped), "learning_rate": self._learning_rate()}
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        metrics |= {"tokens": float(tokens(distribution, batch.outcomes)), **clock.seconds}
        state = FitState(
            index + 1,
            self.optimizer,
            self.scheduler,
            self.generators,
            self.estimator_state,
            asdict(batch),
            self.definition,
        )
        # A batch may be reused: what the caller gets, and may edit, is a copy.
        return Step(index, own(batch.outcomes), weights, metrics, state)

    def restore(self, saved: Mapping[str, Any]) -> int:
        """Continue from a state that `FitState.state_dict` gave; returns its step."""
        self.definition = compare(saved, self.definition, self.contexts.prompts)
        check_policy(saved, self.parameters)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None and saved["scheduler"] is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        for role, state in saved["generators"].items():
            self.generators[role].set_state(state)
        self.estimator_state = saved["estimator"]
        self.batch = None if saved["batch"] is None else _Batch(**saved["batch"])
        return int(saved["index"])

    def _draw(self, clock: "_Clock") -> _Batch:
        total = len(self.contexts)
        ids = torch.arange(total)
        if self.prompts_per_step is not None and self.prompts_per_step < total:
            order = torch.randperm(total, generator=self.generators["prompts"])
            ids = order[: self.prompts_per_step].sort().values
        if self.from_target:
            return self._draw_from_target(ids, clock)
        source = self.policy if self.proposal is None else self.proposal
        distribution = source(*self.contexts.of_policy(ids))
        outcomes, log_drawn = draw(distribution, self.n, self.generators["sampling"])
        clock.lap("sample")
        arguments = self.contexts.of_target(ids)
        name = self.target.name
        with torch.no_grad():
            prior = self.target.given(*arguments)
            log_prior = as_numbers(
                _supports.log_prob(prior, own(outcomes)), f"the prior of {name!r}"
            )
            clock.lap("score")
            values = self.target.log_potential(outcomes, *arguments)
            potential = as_numbers(values, f"the potential of {name!r}")
            clock.lap("reward")
        density = add_potential(log_prior, potential, name)
        return _Batch(ids, outcomes, log_drawn.double(), log_prior, potential, density)

    def _draw_from_target(self, ids: Tensor, clock: "_Clock") -> _Batch:
        """Samples of the target: what is known of them is that P/q is 1."""
        generator, law = self.generators["sampling"], self.target.prior
        device = self.parameters[0].device
        shape = self.policy(*self.contexts.of_policy(ids)).batch_shape
        if isinstance(law, Empirical):
            outcomes = draw_data(law, self.n, ids, tuple(shape), generator, device)
        else:
            teacher = self.target.given(*self.contexts.of_target(ids))
            outcomes, _ = draw(teacher, self.n, generator)
        clock.lap("sample")
        nothing = torch.zeros(self.n, *shape, dtype=torch.float64, device=device)
        return _Batch(ids, outcomes, nothing, nothing, nothing, nothing)

    def _score(self, distribution: Any, batch: _Batch, parts: Parts) -> tuple[Tensor, Parts]:
        """Log-probs at these parameters; a batch that is one part keeps its graph for later."""
        if one_part(distribution, batch.outcomes, self.token_budget):
            rows, log_prob = next(parts)
            scored = torch.empty_like(batch.log_drawn).reshape(-1)
            scored[rows] = log_prob.detach().to(scored)
            return scored.reshape(batch.log_drawn.shape), iter([(rows, log_prob)])
        with torch.no_grad():
            return distribution.log_prob(batch.outcomes).double(), parts

    def _descend(
        self, parts: Parts, coefficients: Tensor, log_policy: Tensor, limit: float
    ) -> dict[str, float]:
        """One optimiser step along (c * log_prob).sum(), in micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        c, expected = coefficients.reshape(-1), log_policy.reshape(-1)
        difference = 0.0
        for rows, log_prob in parts:
            # 0 · (−inf) would be NaN: outcomes without a coefficient have no gradient.
            if not log_prob.requires_grad:
                raise ValueError(
                    "the policy's log_prob does not depend on its parameters, so there is no "
                    "gradient; make the distribution of them, without detach() or no_grad()"
                )
            used = torch.where(c[rows] != 0, log_prob, 0.0)
            (c[rows] * used).sum().backward()
            gap = (log_prob.detach() - expected[rows]).abs()
            difference = max(difference, float(gap.nan_to_num(0.0).max()))
        if difference > limit:
            self.optimizer.zero_grad(set_to_none=True)
            raise ValueError(
                f"sampled and scored log-probabilities differ by {difference:.2g} nats, where "
                f"rounding explains {limit:.2g}, and no step was taken: the batch is not from the "
                "law that would be fitted; run the model in float32, or another class"
            )
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters, math.inf if self.max_grad_norm is None else self.max_grad_norm
        )
        if not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise ValueError(
                "the gradient is not finite and no step was taken; lower the learning rate, or "
                "run in float32"
            )
        self.optimizer.step()
        return {"grad_norm": float(norm), "sample_score_difference": difference}

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


@dataclass
class _Clock:
    """Seconds spent in each phase of a step."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        key = f"seconds_{phase}"
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self.last
        self.last = now
