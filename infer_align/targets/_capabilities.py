"""What a target provides against what an objective requires."""

from infer_align.targets._declared import Constrained
from infer_align.targets._target import LOG_DENSITY, Target

REMEDIES = {
    "log_density": (
        "its log-density is not known. Fit its samples with estimators.maximum_likelihood(), or "
        "declare a target with a density: a program, tilt(), condition() or product()"
    ),
    "samples": (
        "it cannot be drawn from. Draw a sample of it with infer_align.samplers and give that to "
        "demonstrations(sample), or use an objective of its log-density, such as f_dpg()"
    ),
    "next_token": (
        "its next-token law is not known. Give a language model as a teacher(), or use an "
        "objective of its log-density, such as f_dpg()"
    ),
    "multipliers": (
        "the multipliers of its moments are not known. Solve them first, with "
        "exact.match_moments(target), solve_moments(target, sample) or match_moments(target, draw),"
        " and use the fit's .target; or give moment_match(base, moments, multipliers={...})"
    ),
}
"""What to do where a capability is missing, or all of them for want of multipliers."""


def check_provides(target: Target, requires: frozenset[str], who: str) -> None:
    """Refuse a target that does not provide what an objective requires.

    The fits and ``assess`` call it before they draw anything.

    Parameters
    ----------
    target : Target
    requires : frozenset of str
        ``Estimator.requires``, or any of ``"log_density"``, ``"samples"``, ``"next_token"``.
    who : str
        What requires it, for the message.

    Raises
    ------
    ValueError
        Naming the target, who asks, what is missing and what to do.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators, targets
    >>> data = targets.demonstrations(np.array([0, 1, 1]))
    >>> e = estimators.maximum_likelihood()
    >>> targets.check_provides(data, e.requires, e.name)
    """
    missing = sorted(requires - target.provides)
    if missing:
        own = target.log_potential
        if isinstance(own, Constrained) and not LOG_DENSITY <= target.provides:
            missing = ["multipliers"]
        has = " and ".join(sorted(target.provides)) or "nothing"
        raise ValueError(
            f"{who} needs {' and '.join(sorted(requires))} of its target, and {target.name!r} "
            f"provides {has}: " + "; ".join(REMEDIES.get(m, f"{m} is missing") for m in missing)
        )
