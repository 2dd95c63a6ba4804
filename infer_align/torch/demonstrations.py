"""Batches that a fit draws from the target's own samples, in place of the policy."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer_align.estimators import Estimator
from infer_align.targets import Empirical, Target, check_provides


def fits_samples(target: Target, estimator: Estimator, proposal: Any) -> bool:
    """Whether the estimator wants samples of the target; refuse a wrong pair or a proposal."""
    check_provides(target, estimator.requires, estimator.name)
    from_target = "samples" in estimator.requires
    if from_target and proposal is not None:
        raise ValueError(
            f"{estimator.name} draws from the target {target.name!r} and has no use for a "
            "proposal; leave proposal out, or use an off-policy objective such as f_dpg()"
        )
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
    first = next(iter(law.outcomes.values())) if isinstance(law.outcomes, dict) else law.outcomes
    known = tuple(first.shape)[1 : 1 + axes]
    if axes and (len(known) < axes or int(ids.max()) >= known[0]):
        raise ValueError(
            f"{law.name!r} has outcomes of shape {tuple(first.shape)}, and the policy has contexts "
            f"of shape {tuple(batch_shape)}; give demonstrations for each prompt, (N, prompts, ...)"
        )
    outcomes = law.draw(n, np.random.default_rng(seed), context_axes=axes, contexts=ids.tolist())
    if isinstance(outcomes, dict):
        return {site: torch.as_tensor(y, device=device) for site, y in outcomes.items()}
    return torch.as_tensor(outcomes, device=device)
