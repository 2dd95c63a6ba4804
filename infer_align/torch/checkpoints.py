"""A fit on disk: the policy's weights and the state of the fit, safetensors and JSON only.

A checkpoint is a folder with the SHA-256 of each of its files in ``manifest.json``. It is written
beside its place, synchronised, and then moved there; the one before it is kept as
``NAME.previous``. So whatever interrupts the writing, a complete one stays readable, and a
damaged one is noticed.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from infer_align import _files
from infer_align.torch.fit import FitState
from infer_align.torch.policies import CausalLM

__all__ = ["load_checkpoint", "save_checkpoint"]

POLICY, STATE, TENSORS = "policy", "state.json", "state.safetensors"


def save_checkpoint(folder: str | Path, policy: CausalLM, state: FitState) -> None:
    """Write a policy and the state of its fit to a folder, replacing the checkpoint there.

    The checkpoint that stood there is kept as ``NAME.previous`` beside it, and the one before
    that is deleted first. A ``folder`` that is a link to another disk stays one.

    Parameters
    ----------
    folder : str or pathlib.Path
    policy : CausalLM
        Written to ``folder/policy``, which plain Transformers or PEFT can load.
    state : FitState
        Optimiser, scheduler, generators, estimator and batch: ``Step.state``.

    Raises
    ------
    FileExistsError
        If files stand there, or in ``NAME.previous``, that no checkpoint wrote.
    """
    folder = Path(folder).resolve()
    fresh, previous = _files.partial(folder), _files.previous(folder)
    _files.check_own(folder)
    standing = folder.is_dir() and any(folder.iterdir())
    if standing:  # else the previous one may be the only complete one
        _files.remove(previous)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    policy.save(fresh / POLICY)
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state.state_dict(), tensors, "state")
    save_file(tensors, fresh / TENSORS)
    (fresh / STATE).write_text(json.dumps(tree), encoding="utf-8")
    _files.seal(fresh)
    if standing:
        folder.rename(previous)
    elif folder.is_dir():
        folder.rmdir()
    fresh.rename(folder)
    _files.sync(folder.parent)


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
    ValueError
        If a file of it is not as it was written; the message says which, and what is left.
    """
    return read_state(complete(folder))


def read_state(folder: Path) -> dict[str, Any]:
    """The state in a folder that `complete` has found whole."""
    tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return _decode(tree, load_file(folder / TENSORS))


def complete(folder: str | Path) -> Path:
    """The last complete checkpoint: the folder, or the one before it where a move was interrupted.

    Parameters
    ----------
    folder : str or pathlib.Path

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged. It is not passed over in silence: who wants the one before it moves the
        damaged one away.
    """
    folder = Path(folder)
    real = folder.resolve()
    previous = _files.previous(real)
    found = next((path for path in (real, previous) if path.is_dir() and any(path.iterdir())), None)
    if found is None:
        raise FileNotFoundError(
            f"no complete checkpoint in {folder}: give the run folder of a fit that got as far as "
            "its first checkpoint"
        )
    shown = folder if found == real else previous
    if not (damage := _files.faults(found)):
        return shown
    text = f"the checkpoint {shown} is damaged: {'; '.join(damage)}. "
    if found == real and previous.is_dir() and not _files.faults(previous):
        raise ValueError(
            f"{text}The one before it, {previous} of step {_step(previous)}, is whole: to go on "
            f"from there, move the damaged one away (mv {folder} {folder}.damaged)"
        )
    raise ValueError(
        f"{text}No earlier one is whole: restore it from a copy, or start the fit again"
    )


def _step(folder: Path) -> int:
    return dict(json.loads((folder / STATE).read_text(encoding="utf-8"))["dict"])["index"]


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
