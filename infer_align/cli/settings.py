"""All choices of a run in one record, which `config.json` keeps, and the estimator they name.

Names become objects here and nowhere else: the library takes the objects.
"""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from infer_align.cli.errors import Stop

if TYPE_CHECKING:
    from infer_align.divergences import FDivergence
    from infer_align.estimators import Baseline, Estimator, LogZ

DIVERGENCES = (
    "forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "squared_hellinger",
    "pearson_chi2", "neyman_chi2", "mixed_chi2", "jeffreys",
)  # fmt: skip
FAMILIES = ("alpha", "generalized_jensen_shannon")
ESTIMATORS = ("f_dpg", "reinforce", "vargrad", "trajectory_balance")
BASELINES = ("leave_one_out", "none", "mean", "running", "dpg")
LOG_Z = ("batch", "running", "per_context", "learnt")
SCHEDULES = ("constant", "linear")
FINAL_RATE = 0.1
"""Share of the learning rate at which the linear schedule ends."""


@dataclass(frozen=True)
class Settings:
    """The choices of a run; names are those of the command line and of ``fit``."""

    target: str
    name: str = "target"
    model: str | None = None
    prompts: str | None = None
    max_new_tokens: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    lora: int | None = 16
    divergence: str | None = None
    estimator: str = "f_dpg"
    baseline: str | None = None
    log_z: str | None = None
    truncate: float | None = None
    clip: float | None = None
    n: int = 64
    steps: int = 100
    prompts_per_step: int | None = None
    learning_rate: float = 2e-4
    schedule: str = "constant"
    max_grad_norm: float | None = 1.0
    token_budget: int | None = None
    reuse: int = 1
    seed: int = 0
    n_assess: int = 512
    assess_prompts: int = 8

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Settings":
        """The settings that a run folder holds.

        Raises
        ------
        Stop
            If one is missing or of another type.
        """
        types = get_type_hints(cls)
        found: dict[str, Any] = {}
        for f in fields(cls):
            kinds = get_args(types[f.name]) or (types[f.name],)
            value = config.get(f.name, f.default)
            number = isinstance(value, int) and not isinstance(value, bool)
            if float in kinds and (number or value in ("inf", "-inf", "nan")):
                value = float(value)
            if isinstance(value, bool) or not isinstance(value, kinds):
                got = "nothing" if value is MISSING else f"{value!r:.80}"
                names = " or ".join(kind.__name__.removesuffix("Type") for kind in kinds)
                raise Stop(f"the setting {f.name!r} must be {names}, got {got}")
            found[f.name] = value
        return cls(**found)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    out = {"python": platform.python_version()}
    for name in ("infer_align", "torch", "transformers", "peft", "pyro-ppl", "numpy"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed as a package"
    return out


def make_estimator(s: Settings, num_prompts: int) -> "Estimator":
    """The estimator that the settings name.

    Raises
    ------
    Stop
        For an unknown name, or a choice that the estimator does not have.
    """
    from infer_align import estimators

    choices = {"divergence", "baseline", "log_z", "truncate", "clip"}
    allowed = {
        "f_dpg": choices,
        "reinforce": {"baseline", "truncate"},
        "vargrad": set(),
        "trajectory_balance": {"log_z"},
    }
    _one_of("estimator", s.estimator, ESTIMATORS)
    given = {c for c in choices if getattr(s, c) is not None}
    if refused := sorted(given - allowed[s.estimator]):
        flags = ", ".join(f"--{c.replace('_', '-')}" for c in refused)
        having = [e for e in ESTIMATORS if set(refused) <= allowed[e]]
        raise Stop(
            f"--estimator {s.estimator} has no {flags}; leave it out"
            + (f", or take --estimator {' or '.join(having)}" if having else "")
        )
    baseline = None if s.baseline is None else _baseline(s.baseline)
    _check_log_z(s, num_prompts)
    log_z = None if s.log_z is None else _log_z(s.log_z, num_prompts)
    if s.estimator == "reinforce":
        made = estimators.reinforce(baseline=baseline, truncate=s.truncate)
    elif s.estimator == "vargrad":
        made = estimators.vargrad()
    elif s.estimator == "trajectory_balance":
        made = estimators.trajectory_balance(log_z=log_z or _log_z("learnt", num_prompts))
    else:
        divergence = make_divergence(s.divergence or "jensen_shannon")
        made = estimators.f_dpg(
            divergence, log_z=log_z, baseline=baseline, truncate=s.truncate, clip=s.clip
        )
    if s.n < made.min_outcomes:
        raise Stop(
            f"{made.name} needs --n of at least {made.min_outcomes} outcomes per prompt, got "
            f"{s.n}; raise it" + (", or take --baseline none" if s.estimator == "f_dpg" else "")
        )
    if s.reuse > 1 and made.off_policy is estimators.Claim.REFUSED:
        raise Stop(
            f"--reuse {s.reuse} makes batches off-policy, where {made.name} is biased; take "
            "--baseline leave_one_out, or --reuse 1"
        )
    return made


def make_divergence(text: str) -> "FDivergence":
    """A divergence by name, ``alpha:0.5`` and the like for a member of a family."""
    from infer_align import divergences

    name, colon, value = text.partition(":")
    if not colon:
        everything = (*DIVERGENCES, *(f"{family}:NUMBER" for family in FAMILIES))
        _one_of("divergence", name, DIVERGENCES, shown=everything)
        return getattr(divergences, name)
    _one_of("divergence", name, FAMILIES)
    return getattr(divergences, name)(_number(value, f"--divergence {text}"))


def _baseline(name: str) -> "Baseline":
    from infer_align import estimators

    _one_of("baseline", name, BASELINES)
    return getattr(estimators, name)()


def _check_log_z(s: Settings, num_prompts: int) -> None:
    """Refuse one log Z for prompts that change from step to step."""
    by_turns = s.prompts_per_step is not None and s.prompts_per_step < num_prompts
    if s.log_z == "running" and by_turns:
        raise Stop(
            f"--log-z running is for prompts that are the same at every step, and {num_prompts} "
            f"prompts come by turns (--prompts-per-step {s.prompts_per_step}); take --log-z "
            "per_context, which keeps one for each prompt"
        )


def _log_z(name: str, num_prompts: int) -> "LogZ":
    import numpy as np

    from infer_align import estimators

    rules: dict[str, Callable[[], LogZ]] = {
        "batch": estimators.batch_log_z,
        "running": estimators.running_log_z,
        "per_context": lambda: estimators.per_context_log_z(num_prompts),
        "learnt": lambda: estimators.learnt_log_z(np.zeros(num_prompts)),
    }
    if name in rules:
        return rules[name]()
    try:
        return estimators.known_log_z(float(name))
    except ValueError:
        _one_of("log-z", name, LOG_Z, shown=(*LOG_Z, "a number"))
        raise


def _one_of(
    option: str, value: str, names: tuple[str, ...], *, shown: tuple[str, ...] | None = None
) -> None:
    if value not in names:
        raise Stop(f"--{option} {value!r} is not known; take one of {', '.join(shown or names)}")


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Stop(f"{option}: {text!r} is not a number") from error
