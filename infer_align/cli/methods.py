"""Names of samplers, and the options that each of them reads.

Names become functions here and nowhere else: the library takes the functions.
"""

import math
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_align.cli.console import notice
from infer_align.cli.errors import Stop
from infer_align.cli.sizes import check_size

if TYPE_CHECKING:
    from infer_align.cli.job import Job
    from infer_align.samplers import Source
    from infer_align.targets import WeightedSample

READS = {
    "rejection": ("log_bound", "max_calls"),
    "quasi-rejection": ("log_beta", "acceptance_rate", "max_calls"),
    "importance": (),
    "resampling": ("proposals", "smooth"),
    "metropolis": ("steps",),
    "local-metropolis": ("steps",),
    "smc": ("ess_threshold",),
}
"""Name of a method → the options that it reads, besides n and the seed."""
PILOT = 512
"""Draws per prompt from which β is chosen for an acceptance rate."""
MAX_CALLS, HOPELESS = 1_000_000, 1000.0
"""The samplers' default, and how many times the calls a run may seem to need before it is begun."""


@dataclass(frozen=True)
class Choices:
    """Options of the methods, as given: None (or False) where not."""

    log_bound: float | None = None
    log_beta: float | None = None
    acceptance_rate: float | None = None
    max_calls: int | None = None
    proposals: int | None = None
    smooth: bool = False
    steps: int | None = None
    ess_threshold: float | None = None

    def given(self) -> list[str]:
        """Names of the options that were given."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return [name for name, x in values.items() if x is not None and x is not False]


def check(method: str, choices: Choices) -> None:
    """Refuse unknown names, and options that the method does not read.

    Raises
    ------
    Stop
        With the methods that there are, or those that read the option.
    """
    if method not in READS:
        raise Stop(f"--method {method!r} is not known; take one of {', '.join(READS)}")
    for name in choices.given():
        if name not in READS[method]:
            having = [m for m, names in READS.items() if name in names]
            raise Stop(
                f"--method {method} has no --{name.replace('_', '-')}; leave it out, or take "
                f"--method {' or '.join(having)}"
            )
    both = choices.log_beta is not None, choices.acceptance_rate is not None
    if method == "quasi-rejection" and sum(both) != 1:
        raise Stop(
            "--method quasi-rejection needs how far it may be from the target: --acceptance-rate "
            "(as 0.1), or --log-beta, one of them"
        )


def check_sizes(method: str, n: int, choices: Choices, job: "Job | None") -> None:
    """Refuse what the memory cannot hold: outcomes, proposals, and the weights of all moves.

    Raises
    ------
    Stop
        With the size.
    """
    contexts, tokens = (1, 1) if job is None else (len(job.labels), job.lm.max_new_tokens)
    check_size("--n", n, contexts, tokens)
    if method == "resampling":
        check_size("--proposals", choices.proposals or 10 * n, contexts, tokens)
    if "steps" in READS[method] and choices.steps is not None:
        check_size("--steps", n * choices.steps, contexts)


def draw(
    method: str, source: "Source", n: int, choices: Choices, twist: Any = None
) -> "WeightedSample":
    """A weighted sample by the method of that name; its warnings become notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample = _draw(method, source, n, choices, twist)
    for text in dict.fromkeys(str(w.message) for w in caught):
        notice(text)
    return sample


def _draw(method: str, source: "Source", n: int, c: Choices, twist: Any) -> "WeightedSample":
    from infer_align import samplers

    calls: dict[str, Any] = {} if c.max_calls is None else {"max_calls": c.max_calls}
    steps = 100 if c.steps is None else c.steps
    if method == "importance":
        return samplers.importance(source, n)
    if method == "resampling":
        m = 10 * n if c.proposals is None else c.proposals
        return samplers.sampling_importance_resampling(source, n, m, smooth=c.smooth)
    if method == "rejection":
        _check_calls(source, n, c.log_bound or 0.0, c.max_calls, "--log-bound")
        return samplers.rejection(source, n, c.log_bound or 0.0, **calls)
    if method == "quasi-rejection":
        return _quasi_rejection(source, n, c, calls)
    if method == "metropolis":
        return samplers.independence_metropolis(source, n, steps)
    if method == "local-metropolis":
        return samplers.local_metropolis(source, n, steps)
    threshold = 0.5 if c.ess_threshold is None else c.ess_threshold
    return samplers.smc(source, n, twist=twist, ess_threshold=threshold)


def _check_calls(
    source: "Source", n: int, log_cut: float, max_calls: int | None, flag: str
) -> None:
    """Refuse a bound so far above the weights that no run would accept what is asked for.

    Only where it would take a thousand times the calls that are allowed, by a pilot, which is not
    drawn where the bound is moderate.
    """
    from infer_align import samplers

    most = math.log(max_calls or MAX_CALLS) + math.log(HOPELESS) - math.log(n)
    if log_cut <= most:
        return
    weights = samplers.importance(source, PILOT).log_weights
    top = float(np.max(weights)) if np.any(weights > -math.inf) else 0.0
    if log_cut - top > most:
        calls = (log_cut - top + math.log(n)) / math.log(10)
        raise Stop(
            f"{flag} {log_cut:g} lies {log_cut - top:.4g} nats above the largest log-weight of "
            f"{PILOT} draws ({top:.4g}): {n} acceptances would take more than 10^{calls:.0f} "
            f"calls, and --max-calls is {max_calls or MAX_CALLS:,}; lower {flag}"
        )


def _quasi_rejection(
    source: "Source", n: int, c: Choices, calls: dict[str, Any]
) -> "WeightedSample":
    from infer_align import samplers

    if c.acceptance_rate is None:
        _check_calls(source, n, c.log_beta or 0.0, c.max_calls, "--log-beta")
        return samplers.quasi_rejection(source, n, c.log_beta, **calls)
    pilot = samplers.importance(source, PILOT)
    log_beta = samplers.choose_log_beta(pilot.log_weights, acceptance_rate=c.acceptance_rate)
    sample = samplers.quasi_rejection(source, n, log_beta, **calls)
    return sample._replace(
        calls=sample.calls + PILOT, method=f"{sample.method}, after a pilot of {PILOT} draws"
    )
