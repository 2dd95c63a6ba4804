"""Parallel Markov chains: which of their states are kept."""

import math

import numpy as np

from infer_align._arguments import count
from infer_align.samplers._outcomes import Outcomes, each, like, sized, with_contexts
from infer_align.samplers._source import Source
from infer_align.targets import WeightedSample

LONGEST = 10**8
"""Most steps of a chain."""


def check_lengths(source: Source, n: int, steps: int, keep: int, thin: int) -> None:
    """Refuse chains that cannot give what is asked of them."""
    sized("n", n, source, times=count("keep", keep))
    count("thin", thin)
    if count("steps", steps) > LONGEST:
        raise ValueError(f"chains of {steps} steps would not end; take at most {LONGEST}")
    if steps < 1 + (keep - 1) * thin:
        raise ValueError(
            f"chains of {steps} steps have no {keep} states {thin} steps apart; they need at "
            f"least {1 + (keep - 1) * thin}"
        )


class Record:
    """The last ``keep`` states, ``thin`` steps apart, of n chains in each of C contexts."""

    def __init__(self, steps: int, keep: int, thin: int) -> None:
        self.kept = {steps - k * thin for k in range(keep)}
        self.outcomes: list[Outcomes] = []
        self.log_target: list[np.ndarray] = []
        self.accepted = self.moves = 0

    def add(self, step: int, outcomes: Outcomes, log_target: np.ndarray, moved: np.ndarray) -> None:
        """State after a step (the first is 1), and which chains moved to it."""
        counted = log_target > -math.inf
        self.accepted += int((moved & counted).sum())
        self.moves += int(counted.sum())
        if step in self.kept:
            self.outcomes.append(each(np.copy, outcomes))
            self.log_target.append(log_target.copy())

    @property
    def acceptance(self) -> float:
        """Share of the moves that were made, of chains inside the support; 0 if none was."""
        return self.accepted / self.moves if self.moves else 0.0

    def sample(
        self,
        source: Source,
        original: Outcomes,
        cluster: np.ndarray,
        evidence: np.ndarray,
        calls: int,
        method: str,
        total_variation: float | np.ndarray,
    ) -> WeightedSample:
        """Equal weights; ``-inf`` for a chain that never met the target's support."""
        log_target = np.concatenate(self.log_target)
        outcomes = each(lambda *x: np.concatenate(x), *self.outcomes)
        shape, times = (len(log_target), *source.shape), len(self.outcomes)
        weights = np.where(log_target > -math.inf, 0.0, -math.inf)
        given = like(with_contexts(outcomes, source.shape), original)
        return WeightedSample(
            outcomes=given,
            log_weights=weights.reshape(shape),
            log_target=log_target.reshape(shape),
            evidence=evidence.reshape(-1, *source.shape),
            cluster=np.tile(cluster, (times, 1)).reshape(shape),
            calls=calls,
            method=method,
            log_target_se=source.log_target_se(given),
            total_variation=total_variation,
            log_bound=source.log_bound,
        )
