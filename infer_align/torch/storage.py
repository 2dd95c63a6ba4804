"""Model files and what a model's own configuration says: the parts of `CausalLM` about loading."""

import copy
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from infer_align.torch.networks import SharedModel


def load_folder(
    path_or_id: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model and tokenizer of a folder or a hub id."""
    folder = Path(path_or_id)
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path_or_id):
        raise FileNotFoundError(
            f"no folder {path_or_id}, and that is not a hub id either: give an existing model "
            "folder, a .gguf file, or an id such as owner/name"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json, so no model is saved there: give a folder that "
            "save_pretrained wrote (CausalLM.load reads adapters)"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(
            f"{path_or_id} is neither a model folder here nor a model that the hub gave: {error}"
        ) from error
    named = ("tokenizer*", "vocab*", "*.model", "spiece*")
    if folder.is_dir() and not any(list(folder.glob(n)) for n in named):
        return model, None  # a model over token ids, as the tiny random ones are
    return model, AutoTokenizer.from_pretrained(path_or_id)


def default_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """EOS ids of the generation configuration, else the configuration, else the tokenizer."""
    generation = getattr(model, "generation_config", None)
    candidates = [
        None if generation is None else generation.eos_token_id,
        model.config.eos_token_id,
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
    candidates = [bos, model.config.bos_token_id, *eos[:1]]
    return next((c for c in candidates if c is not None), None)


def plain_copy(shared: SharedModel) -> PreTrainedModel:
    """A copy of the module without any adapter."""
    if shared.peft is None:
        return copy.deepcopy(shared.module)
    return copy.deepcopy(shared.peft).unload()


def save_adapter(shared: SharedModel, adapter: str, folder: Path) -> None:
    """Write one adapter at the root of the folder, where plain ``peft`` looks for it."""
    from peft import get_peft_model_state_dict

    assert shared.peft is not None, "there is an adapter, so there is its owner"
    state = get_peft_model_state_dict(
        shared.peft, adapter_name=adapter, save_embedding_layers=False
    )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(shared.peft.peft_config[adapter])
    config.inference_mode = True
    config.save_pretrained(str(folder))
