"""Prompts to token ids: text, chat messages, token ids, or nothing at all.

A prompt is encoded once, here; training and scoring use the ids that sampling produced and
never encode decoded text again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, object]] | Sequence[int] | Tensor | np.ndarray | None
"""A text, a list of chat messages, a sequence of token ids, or ``None`` (unconditional)."""


def encode(
    prompts: Sequence[Prompt] | Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    start_token_id: int | None,
    vocab_size: int,
    room: int | None,
) -> list[list[int]]:
    """Token ids of each prompt, checked.

    Parameters
    ----------
    prompts : sequence of prompts
        Texts, chats (lists of messages), token-id sequences or ``None``.
    tokenizer : PreTrainedTokenizerBase or None
        Needed for text and chats.
    start_token_id : int or None
        The one-token prompt that ``None`` stands for.
    vocab_size : int
        Ids must lie in ``[0, vocab_size)``.
    room : int or None
        Longest prompt that leaves the continuation within the model's context.

    Raises
    ------
    ValueError
        For an empty list or prompt, an id out of range, a prompt without room.
    """
    if isinstance(prompts, str | Mapping):
        raise TypeError(
            f"prompts must be a list, one entry per context; got a single "
            f"{type(prompts).__name__}: pass [prompt]"
        )
    if len(prompts) == 0:
        raise ValueError("prompts is empty: pass at least one, or None for no prompt at all")
    if not isinstance(prompts, Tensor) and isinstance(prompts[0], Mapping | int | np.integer):
        raise TypeError(
            "prompts must be a list of prompts; got one prompt (a chat or a list of token ids): "
            "pass [prompt]"
        )
    encoded = [_encode_one(p, tokenizer, start_token_id) for p in prompts]
    for number, ids in enumerate(encoded):
        if not ids:
            raise ValueError(
                f"prompt {number} has no tokens: pass None for an unconditional continuation"
            )
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise ValueError(
                f"prompt {number} has token ids from {min(ids)} to {max(ids)}; the model knows "
                f"0 to {vocab_size - 1}"
            )
        if room is not None and len(ids) > room:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens, but only {room} fit the model's context "
                "beside max_new_tokens: shorten the prompt or lower max_new_tokens"
            )
    return encoded


def _encode_one(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, start_token_id: int | None
) -> list[int]:
    if prompt is None:
        if start_token_id is None:
            raise ValueError(
                "an unconditional continuation needs a start token, and neither the tokenizer nor "
                "the model's configuration names one: pass start_token_id= to CausalLM"
            )
        return [start_token_id]
    if isinstance(prompt, Tensor | np.ndarray):
        return [int(i) for i in prompt.tolist()]
    messages = None if isinstance(prompt, str) else [m for m in prompt if isinstance(m, Mapping)]
    if not isinstance(prompt, str) and not messages:
        return [int(i) for i in prompt if not isinstance(i, Mapping)]
    if tokenizer is None:
        raise ValueError(
            "this CausalLM has no tokenizer, so prompts must be token ids: pass lists of ints, or "
            "give CausalLM a tokenizer"
        )
    if isinstance(prompt, str):
        return _encode_text(prompt, tokenizer)
    if tokenizer.chat_template is None:
        raise ValueError(
            "got chat messages, but the tokenizer has no chat template: pass text, or set "
            "tokenizer.chat_template"
        )
    # The template writes the special tokens itself.
    chat: Any = [dict(m) for m in messages or []]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return _plain_ids(str(text), tokenizer)


def _plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text, begun with the tokenizer's own prefix (BOS) once and ended with nothing."""
    plain = _plain_ids(text, tokenizer)
    if tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id]:
        return plain  # the text has its BOS already
    full = list(tokenizer(text)["input_ids"])
    # Some tokenizers append EOS, which would end the prompt before its continuation.
    for prefix in range(len(full) - len(plain) + 1):
        if full[prefix : prefix + len(plain)] == plain:
            return full[: prefix + len(plain)]
    raise ValueError(
        f"the tokenizer encodes {text!r} differently with and without special tokens; pass the "
        "prompt as token ids"
    )
