"""Outcomes and their log-probabilities of any distribution, as fits and assessments need them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from infer_align import _supports
from infer_align._numerics import as_real, own
from infer_align._threads import alone
from infer_align.torch.continuations import Continuations

Parts = Iterator[tuple[Tensor, Tensor]]
"""Flat row numbers, and log-probabilities of these rows with their graph."""


def draw(distribution: Any, n: int, generator: torch.Generator) -> tuple[Any, Tensor]:
    """Outcomes (n, *contexts, ...) of any distribution, with log-probs, from a generator."""
    if isinstance(distribution, Continuations):
        return distribution.sample_with_log_prob((n,), generator=generator)
    with alone(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(generator.get_state())
        outcomes = distribution.sample((n,))
        generator.set_state(torch.get_rng_state())
        return outcomes, distribution.log_prob(own(outcomes))


def as_numbers(x: Any, what: str) -> Tensor:
    """Values of a program, potential or feature in double precision; complex ones are refused."""
    try:
        values = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what} is a {type(x).__name__}; it must be a tensor of shape (n, *contexts): {error}"
        ) from None
    return as_real(values, what).double()


def log_prob_in_parts(distribution: Any, outcomes: Any, token_budget: int | None) -> Parts:
    """Log-probs with a graph, of flat row numbers: in parts where the distribution has them."""
    if not isinstance(distribution, Continuations):
        log_prob = _supports.log_prob(distribution, own(outcomes)).reshape(-1)
        yield torch.arange(len(log_prob), device=log_prob.device), log_prob
        return
    for rows in distribution.micro_batches(outcomes, token_budget):
        yield rows, distribution.log_prob_rows(outcomes, rows)


def one_part(distribution: Any, outcomes: Any, token_budget: int | None) -> bool:
    """Whether `log_prob_in_parts` gives one part."""
    if not isinstance(distribution, Continuations):
        return True
    return len(list(distribution.micro_batches(outcomes, token_budget))) == 1


def tokens(distribution: Any, outcomes: Any) -> int:
    """How many tokens (or numbers) outcomes have."""
    if isinstance(distribution, Continuations):
        return int(distribution.lengths(outcomes).sum())
    sites = outcomes.values() if isinstance(outcomes, dict) else [outcomes]
    return sum(y.numel() for y in sites)
