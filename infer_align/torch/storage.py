"""Model files and what a model's own configuration says: the parts of `CausalLM` about loading."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from infer_align import _files
from infer_align.torch._definition import SAMPLED, fingerprint
from infer_align.torch.networks import SharedModel

SETTINGS = "causal_lm.json"
"""File beside the weights with what Transformers does not keep: T, EOS ids, start token."""
FINGERPRINT = "base_fingerprint"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHT_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")
"""Endings of files, which no hub id has."""


def load_folder(
    path_or_id: str | Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model and tokenizer of a folder or a hub id.

    Raises
    ------
    FileNotFoundError
        If there is no such model. What looks like a path here is never asked of the hub.
    ValueError
        If a file of weights is damaged.
    """
    folder = local_path(path_or_id)
    if folder is None or not folder.is_dir():
        source: str | Path = _hub_id(path_or_id)
    elif not (folder / "config.json").is_file():
        reads = ""
        if (folder / ADAPTER_CONFIG).is_file():
            reads = "; CausalLM.load reads adapters such as the one there"
        raise FileNotFoundError(
            f"{folder} has no config.json, so no model is saved there: give a folder that "
            f"save_pretrained wrote{reads}"
        )
    else:
        source = folder
    local = isinstance(source, Path)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=local)
        named = ("tokenizer*", "vocab*", "*.model", "spiece*")
        if isinstance(source, Path) and not any(list(source.glob(n)) for n in named):
            return model, None  # a model over token ids, as the tiny random ones are
        return model, AutoTokenizer.from_pretrained(source, local_files_only=local)
    except SafetensorError as error:
        raise ValueError(f"a file of weights in {source} is damaged ({error})") from error
    except OSError as error:
        what = "no complete model" if local else "no folder here and no model that the hub gave"
        raise FileNotFoundError(f"{source} is {what}: {error}") from error


def local_path(path_or_id: str | Path) -> Path | None:
    """The absolute path of an existing file or folder, or None."""
    path = Path(os.path.expanduser(path_or_id)).absolute()
    return path if path.exists() else None


def _hub_id(path_or_id: str | Path) -> str:
    """A hub id, unless the text looks like a path of this machine."""
    what = "give an existing model folder, a .gguf file, or a hub id such as owner/name"
    path = Path(path_or_id)
    if local_path(path_or_id) is not None:
        raise FileNotFoundError(f"{path_or_id} is a file, and a model is a folder: {what}")
    if (
        isinstance(path_or_id, Path)
        or path.suffix in WEIGHT_FILES
        or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path_or_id)
    ):
        raise FileNotFoundError(f"no folder {path_or_id}, which cannot be a hub id: {what}")
    if len(path.parts) == 2 and Path(path.parts[0]).is_dir():
        raise FileNotFoundError(
            f"no folder {path_or_id}, and {path.parts[0]}/ is a folder here, so it is no hub id: "
            f"{what} (to take the hub's {path_or_id}, download it and give its folder)"
        )
    return path_or_id


def default_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """EOS ids of the generation configuration, else the configuration, else the tokenizer."""
    generation = getattr(model, "generation_config", None)
    candidates = [
        None if generation is None else generation.eos_token_id,
        getattr(model.config.get_text_config(), "eos_token_id", None),
        None if tokenizer is None else tokenizer.eos_token_id,
    ]
    found = next((c for c in candidates if c is not None), None)
    if found is None:
        raise ValueError(
            "neither the model nor the tokenizer names an EOS token: pass eos_token_ids=, or "
            "eos_token_ids=() for outcomes of exactly max_new_tokens tokens"
        )
    return (found,) if isinstance(found, int) else tuple(found)


def default_start(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, eos: tuple[int, ...]
) -> int | None:
    """BOS of the tokenizer, else of the configuration, else the first EOS."""
    bos = None if tokenizer is None else tokenizer.bos_token_id
    candidates = [bos, getattr(model.config.get_text_config(), "bos_token_id", None), *eos[:1]]
    return next((c for c in candidates if c is not None), None)


def plain_copy(shared: SharedModel) -> PreTrainedModel:
    """A copy of the module without any adapter."""
    if shared.peft is None:
        return copy.deepcopy(shared.module)
    return copy.deepcopy(shared.peft).unload()


def base_of(shared: SharedModel, adapter: str) -> str | None:
    """Where an adapter's base came from: a hub id, the absolute path of a folder, or None."""
    assert shared.peft is not None, "there is an adapter, so there is its owner"
    said = shared.peft.peft_config[adapter].base_model_name_or_path
    name = shared.module.name_or_path or said
    found = local_path(name) if name else None
    return (name or None) if found is None else str(found)


def check_kind(folder: Path, *, adapter: bool) -> None:
    """Refuse to write an adapter beside a full model, or the reverse: neither would load."""
    other = folder / ("config.json" if adapter else ADAPTER_CONFIG)
    if other.is_file():
        kinds = ("an adapter", "a full model") if adapter else ("a full model", "an adapter")
        raise FileExistsError(
            f"{kinds[0]} cannot be saved in {folder}, which holds {kinds[1]}: give another folder"
        )


def save_adapter(shared: SharedModel, adapter: str, folder: Path) -> None:
    """Write one adapter at the root of the folder, where plain ``peft`` looks for it."""
    from peft import get_peft_model_state_dict

    assert shared.peft is not None, "there is an adapter, so there is its owner"
    state = get_peft_model_state_dict(
        shared.peft, adapter_name=adapter, save_embedding_layers=False
    )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(shared.peft.peft_config[adapter])
    config.inference_mode = True
    config.base_model_name_or_path = base_of(shared, adapter)
    config.save_pretrained(str(folder))


def base_fingerprint(module: PreTrainedModel) -> str:
    """A checksum of a module's weights without its adapters, equal in every floating type."""
    named = {
        name.replace(".base_layer", ""): p
        for name, p in module.named_parameters()
        if "lora_" not in name
    }
    # In bfloat16, to which every type rounds alike.
    some = (named[k].detach().reshape(-1) for k in sorted(named))
    return fingerprint(x[:: max(1, len(x) // SAMPLED)].to(torch.bfloat16) for x in some)


def check_whole(folder: Path) -> None:
    """Refuse a sealed policy of which a file is damaged; one without a manifest is taken as it is.

    Raises
    ------
    ValueError
        Which file.
    """
    damage: list[str] = []
    if (folder / _files.MANIFEST).is_file():
        damage = _files.faults(folder)
    elif all((folder.parent / file).is_file() for file in (_files.MANIFEST, "state.json")):
        # Of a checkpoint, which is sealed as a whole.
        damage = _files.faults(folder.parent, under=f"{folder.name}/")
    if damage:
        raise ValueError(
            f"the policy in {folder} is damaged: {'; '.join(damage)}. Restore it from a copy, or "
            f"save it again; if you changed it on purpose, remove its {_files.MANIFEST}"
        )


def check_prior(folder: Path, settings: dict[str, Any], prior: dict[str, Any]) -> None:
    """Refuse a policy with another prior than the one that it was fitted from.

    Raises
    ------
    ValueError
    """
    for name, here in prior.items():
        saved = settings.get(name, here)  # older folders have no fingerprint
        if saved != here:
            raise ValueError(
                f"the policy in {folder} was fitted from another prior: {name} was {saved} and is "
                f"{here}; give the model that it was fitted from, loaded as it was then"
            )


def check_adapter(folder: Path) -> None:
    """Refuse an adapter without its weights: ``peft`` would ask the hub for them."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}: the adapter's weights are "
            "missing; give a complete folder that CausalLM.save wrote"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """What `CausalLM.save` wrote beside the weights.

    Raises
    ------
    FileNotFoundError
        If `CausalLM.save` did not write the folder.
    ValueError
        If the file is damaged.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SETTINGS}, so CausalLM.save did not write it: load another "
            "model with CausalLM.from_pretrained"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        base = {} if FINGERPRINT not in found else {FINGERPRINT: found[FINGERPRINT]}
        return base | {
            "max_new_tokens": int(found["max_new_tokens"]),
            "eos_token_ids": [int(i) for i in found["eos_token_ids"]],
            "start_token_id": found["start_token_id"],
        }
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}): it must be an object with "
            "max_new_tokens, eos_token_ids and start_token_id, as CausalLM.save writes it"
        ) from error
