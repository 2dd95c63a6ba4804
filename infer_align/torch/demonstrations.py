"""Batches that a fit draws from the target's own samples, in place of the policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer_align.estimators import Estimator
from infer_align.targets import Empirical, Target, check_provides


def fits_samples(
    target: Target, estimator: Estimator, proposal: Any, prompts: Sequence[Any] | None
) -> bool:
    """Whether the estimator wants samples of the target; refuse what does not fit together."""
    check_provides(target, estimator.requires, estimator.name)
    from_target = "samples" in estimator.requires
    if from_target and proposal is not None:
        raise ValueError(
            f"{estimator.name} draws from the target {target.name!r} and has no use for a "
            "proposal; leave proposal out, or use an off-policy objective such as f_dpg()"
        )
    if from_target and isinstance(target.prior, Empirical):
        target.prior.check_contexts(() if prompts is None else (len(prompts),))
    return from_target


def draw_data(
    law: Empirical,
    n: int,
    ids: Tensor,
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device,
) -> Any:
    """Outcomes (n, *contexts, ...) of a data set, for some of its contexts."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    axes = len(batch_shape)
    if axes and batch_shape != (len(ids),):
        raise ValueError(
            f"the policy has contexts of shape {batch_shape} for {len(ids)} prompts; "
            "demonstrations need one a prompt"
        )
    outcomes = law.draw(n, np.random.default_rng(seed), context_axes=axes, contexts=ids.tolist())
    if isinstance(outcomes, dict):
        return {site: torch.as_tensor(y, device=device) for site, y in outcomes.items()}
    return torch.as_tensor(outcomes, device=device)
