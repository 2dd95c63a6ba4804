"""What defines a fit: recorded in its state, and compared when it goes on."""

import copy
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

SAMPLED = 64
"""Entries of each tensor that its fingerprint is made of."""
PROGRESS = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}
"""What a scheduler changes as it goes; the rest of its state are its settings."""
SCHEDULED = {"lr", "momentum", "betas"}
"""What a scheduler may change of an optimiser."""
PARTS = ("index", "optimizer", "scheduler", "generators", "estimator", "batch", "definition")


def fingerprint(parameters: Iterable[Tensor]) -> str:
    """A checksum of some entries of each tensor, in single precision: equal for equal weights."""
    found = 0
    for p in parameters:
        flat = p.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu().contiguous()
        found = crc32(some.numpy().tobytes(), crc32(str(tuple(p.shape)).encode(), found))
    return f"{found:08x}"


def digest(x: Any) -> str:
    """A checksum of a prompt or of a column's entry."""
    if isinstance(x, Tensor):
        x = x.tolist()
    text = json.dumps(x, sort_keys=True, default=repr, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def describe_optimizer(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    """Class and settings of an optimiser, but for what its scheduler changes, as plain values."""
    moving = {"params"} | (SCHEDULED if scheduler is not None else set())
    groups = [
        {k: v for k, v in _plain(group).items() if k not in moving}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": groups}


def describe_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """Class and settings of a learning-rate scheduler, None for none."""
    if scheduler is None:
        return None
    return {"class": type(scheduler).__name__} | _plain(scheduler.state_dict())


def describe_contexts(
    prompts: Sequence[Any] | None, columns: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """Checksums of the prompts, one each, and of the columns."""
    return {
        "prompts": None if prompts is None else [digest(p) for p in prompts],
        "columns": [digest([digest(v) for v in values]) for values in columns],
    }


def compare(
    saved: Mapping[str, Any], now: dict[str, Any], prompts: Sequence[Any] | None
) -> dict[str, Any]:
    """The definition to go on with: refuses another fit, naming each difference.

    ``steps`` may change. A scheduler goes on as it was saved, and where its settings would now be
    others, a warning says so.

    Raises
    ------
    ValueError
    """
    old = copy.deepcopy(dict(_definition_of(saved)))
    for group, held in zip(
        old["optimizer"]["groups"], saved["optimizer"]["param_groups"], strict=True
    ):  # a rate that the caller's loop has changed: that of the start, or the last one
        if "lr" in group and any(g.get("lr") == held["lr"] for g in now["optimizer"]["groups"]):
            group["lr"] = held["lr"]
    found = [
        f"{name} was {_shown(old.get(name))} and is {_shown(now[name])}"
        for name in now
        if name not in ("steps", "scheduler", "prompts", "columns") and now[name] != old.get(name)
    ]
    found += _of_prompts(old["prompts"], now["prompts"], prompts)
    if old["columns"] != now["columns"]:
        found.append("the columns have other entries")
    a, b = old["scheduler"], now["scheduler"]
    other = (a is None) != (b is None) or (a is not None and a["class"] != b["class"])
    if other or (a != b and old["steps"] == now["steps"]):
        found.append(f"the scheduler was {_shown(a)} and is {_shown(b)}")
    if found:
        raise ValueError(
            "the state to resume from is that of another fit: " + "; ".join(found) + ". Resume "
            "with the arguments of the earlier fit, or leave resume out to start a new one from "
            "this policy"
        )
    if a is not None and a != b:
        warnings.warn(_of_schedule(old, now), UserWarning, stacklevel=4)
    return now | {"scheduler": a}


def check_policy(saved: Mapping[str, Any], parameters: Iterable[Tensor]) -> None:
    """Refuse to go on from a state with a policy of other parameters.

    Raises
    ------
    ValueError
    """
    if saved["parameters"] != fingerprint(parameters):
        raise ValueError(
            "the policy's parameters are not those that the state to resume from was saved with; "
            "load the policy of that step, CausalLM.load(checkpoint / 'policy', prior=...)"
        )


def _definition_of(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [part for part in (*PARTS, "parameters") if part not in saved]
    if missing:
        raise ValueError(
            f"the state to resume from lacks {', '.join(missing)}; give FitState.state_dict(), or "
            "load_checkpoint(folder), of a fit by this version"
        )
    return saved["definition"]


def _of_prompts(
    old: list[str] | None, now: list[str] | None, prompts: Sequence[Any] | None
) -> list[str]:
    if old == now:
        return []
    if old is None or now is None or prompts is None or len(old) != len(now):
        count = lambda x: "no prompts" if x is None else f"{len(x)} prompts"
        return [f"there were {count(old)} and are {count(now)}"]
    other = [i for i, (a, b) in enumerate(zip(old, now, strict=True)) if a != b]
    order = ", in another order" if sorted(old) == sorted(now) else ""
    return [
        f"{len(other)} of {len(now)} prompts are others{order}, the first now "
        f"{_shown(prompts[other[0]])}"
    ]


def _of_schedule(old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    a, b = old["scheduler"], now["scheduler"]
    settings = ", ".join(
        f"{name} {_shown(a.get(name))} (given: {_shown(b.get(name))})"
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    )
    return (
        f"steps is {now['steps']} and was {old['steps']}; the learning rate goes on by the "
        f"schedule that was saved, {a['class']} with {settings}: what it comes to at step "
        f"{old['steps']} it keeps after that. For a schedule over all {now['steps']} steps start "
        "a new fit"
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of it JSON can hold: numbers, texts, and lists and dicts of them."""
    kept = {name: _value(x) for name, x in settings.items() if name not in PROGRESS}
    return {name: value for name, value in kept.items() if value is not Ellipsis}


def _value(x: Any) -> Any:
    if isinstance(x, Tensor) and x.numel() == 1:
        return x.item()
    if isinstance(x, list | tuple):
        values = [_value(v) for v in x]
        return ... if any(v is ... for v in values) else values
    if isinstance(x, Mapping):
        return {str(k): v for k, v in _plain(x).items()}
    return x if x is None or isinstance(x, bool | int | float | str) else ...


def _shown(x: Any) -> str:
    text = "none" if x is None else str(x) if isinstance(x, Mapping) else repr(x)
    return text if len(text) <= 160 else text[:157] + "..."
