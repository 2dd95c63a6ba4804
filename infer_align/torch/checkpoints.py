"""A fit on disk: the policy's weights and the state of the fit, safetensors and JSON only.

A checkpoint is a folder. It is written beside its place and then moved there, so that whatever
interrupts the writing, the last complete one stays readable.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from infer_align.torch.fit import FitState
from infer_align.torch.policies import CausalLM

__all__ = ["load_checkpoint", "save_checkpoint"]

POLICY, STATE, TENSORS = "policy", "state.json", "state.safetensors"


def save_checkpoint(folder: str | Path, policy: CausalLM, state: FitState) -> None:
    """Write a policy and the state of its fit to a folder, replacing what stood there.

    Parameters
    ----------
    folder : str or pathlib.Path
    policy : CausalLM
        Written to ``folder/policy``, which plain Transformers or PEFT can load.
    state : FitState
        Optimiser, scheduler, generators, estimator and batch: ``Step.state``.
    """
    folder = Path(folder)
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    policy.save(fresh / POLICY)
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state.state_dict(), tensors, "state")
    save_file(tensors, fresh / TENSORS)
    (fresh / STATE).write_text(json.dumps(tree))
    if folder.exists():  # else the old one may be the only complete one
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """State of a fit as `save_checkpoint` wrote it, for ``fit(resume=...)``.

    Parameters
    ----------
    folder : str or pathlib.Path
        The policy itself is in ``folder/policy``; `CausalLM.load` reads it.

    Returns
    -------
    dict
        ``FitState.state_dict()``.

    Raises
    ------
    FileNotFoundError
        If no complete checkpoint stands there.
    """
    folder = complete(folder)
    return _decode(json.loads((folder / STATE).read_text()), load_file(folder / TENSORS))


def complete(folder: str | Path) -> Path:
    """The last complete checkpoint: the folder, or what an interrupted move left beside it.

    Parameters
    ----------
    folder : str or pathlib.Path
    """
    for candidate in (Path(folder), _beside(Path(folder), "old")):
        if (candidate / STATE).is_file() and (candidate / POLICY).is_dir():
            return candidate
    raise FileNotFoundError(
        f"no complete checkpoint in {folder}: it needs {STATE}, {TENSORS} and {POLICY}/; give the "
        "run folder of a fit that got as far as its first checkpoint"
    )


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _encode(x: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """JSON for a tree of dicts, lists and numbers, its arrays moved to ``tensors``."""
    if isinstance(x, np.ndarray | np.generic):
        x = torch.as_tensor(np.asarray(x))
    if isinstance(x, torch.Tensor):
        tensors[name] = x.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(x, Mapping):
        return {"dict": [[k, _encode(v, tensors, f"{name}.{k}")] for k, v in x.items()]}
    if isinstance(x, list | tuple):
        kind = "tuple" if isinstance(x, tuple) else "list"
        return {kind: [_encode(v, tensors, f"{name}.{i}") for i, v in enumerate(x)]}
    if x is None or isinstance(x, bool | int | float | str):
        return x
    raise TypeError(
        f"{name} is a {type(x).__name__}, which a checkpoint cannot hold; it holds numbers, "
        "strings, tensors, and dicts and lists of them"
    )


def _decode(x: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(x, dict):
        return x
    ((kind, value),) = x.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _decode(v, tensors) for k, v in value}
    items = [_decode(v, tensors) for v in value]
    return tuple(items) if kind == "tuple" else items
