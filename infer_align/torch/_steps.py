"""What a fit steps with, checked before the first step: an optimiser, and perhaps a scheduler."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from infer_align._arguments import count, instance, positive

RATE = 2e-4
"""Learning rate of the default optimiser."""


def trainable(policy: Any) -> list[torch.nn.Parameter]:
    """The parameters that a fit moves.

    Raises
    ------
    TypeError, ValueError
        If the policy's ``parameters()`` are no tensors, or none of them is trainable.
    """
    given = policy.parameters()
    every = list(given) if isinstance(given, Iterable) else [given]
    if bad := [p for p in every if not isinstance(p, torch.Tensor)]:
        raise TypeError(
            f"parameters() of the policy must give torch parameters, and gave {bad[0]!r} "
            f"({type(bad[0]).__name__}); make the policy a torch.nn.Module"
        )
    found = [p for p in every if p.requires_grad]
    if not found:
        raise ValueError(
            f"the policy ({type(policy).__name__}) has no trainable parameters, {len(every)} in "
            "all; a CausalLM gets them with .trainable(), a module with torch.nn.Parameter"
        )
    return found


def check_per_step(given: int | None, prompts: int) -> int | None:
    """How many prompts come at a step; ValueError for more than there are."""
    if given is None:
        return None
    if count("prompts_per_step", given) > prompts:
        raise ValueError(
            f"prompts_per_step must lie in 1 to {prompts}, the number of prompts, got {given}"
        )
    return int(given)


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    learning_rate: float | None,
) -> torch.optim.Optimizer:
    """The optimiser given, if it can step these parameters, or AdamW without weight decay.

    Raises
    ------
    TypeError, ValueError
        For what is no optimiser over the policy's trainable parameters, all of them and no other.
    """
    if optimizer is None:
        rate = RATE if learning_rate is None else positive("learning_rate", learning_rate)
        return torch.optim.AdamW(list(parameters), lr=rate, weight_decay=0.0)
    instance("the optimizer", optimizer, torch.optim.Optimizer, "torch.optim.AdamW(...)")
    if learning_rate is not None:
        raise ValueError(
            f"learning_rate={learning_rate} is of the default optimizer, and one is given; leave "
            "it out, and give the rate to the optimizer"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss again and again in a step, and a fit draws each batch once; "
            "give an optimizer that steps along one gradient, such as AdamW or SGD"
        )
    groups = optimizer.param_groups
    if any(group.get("maximize") for group in groups):
        raise ValueError(
            "the optimizer has maximize=True, and the gradient is that of a loss: the fit would "
            "go away from the target; leave maximize out"
        )
    held = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    wanted = {id(p) for p in parameters}
    if held != wanted:
        raise ValueError(
            f"the optimizer holds {len(held & wanted)} of the policy's {len(wanted)} trainable "
            f"tensors and {len(held - wanted)} others; make it of policy.parameters() (of the "
            "policy that is fitted), and set requires_grad=False on those that shall not move"
        )
    return optimizer


def check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse a scheduler of no optimiser, of another one, or one that must be told a loss.

    Raises
    ------
    ValueError
    """
    if scheduler is None:
        return
    if optimizer is None:
        raise ValueError(
            "a scheduler was given without the optimizer whose rate it changes; give "
            "optimizer= too, the one that the scheduler was made of"
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau must be told a loss at each step, and a fit steps its scheduler "
            "without; step it in your own loop over fit(...), with a metric of the step"
        )
    own = getattr(scheduler, "optimizer", optimizer)
    if own is not optimizer:
        raise ValueError(
            "the scheduler was made of another optimizer than the one given, whose rate it would "
            "leave alone; make it of this one"
        )


def check_clipping(max_grad_norm: Any) -> float | None:
    """The bound of the gradient's norm; None for no clipping.

    Raises
    ------
    TypeError, ValueError
        For what is not above 0: a negative bound reverses the step, NaN destroys the parameters.
    """
    if max_grad_norm is None or max_grad_norm == float("inf"):
        return None
    return positive("max_grad_norm", max_grad_norm, need="positive (None: no clipping)")
