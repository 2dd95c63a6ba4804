"""Prompts to token ids: text, chat messages, token ids, or nothing at all.

A prompt is encoded once, here; training and scoring use the ids that sampling produced and
never encode decoded text again.
"""

from collections.abc import Mapping, Sequence, Set
from numbers import Integral
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
    TypeError
        For what is no list of prompts, or an entry that is no prompt.
    ValueError
        For an empty list or prompt, an id out of range, a prompt without room, half of a
        surrogate pair in a text.
    """
    _check_list(prompts)
    encoded = []
    for number, prompt in enumerate(prompts):
        try:
            ids = _encode_one(prompt, f"prompt {number}", tokenizer, start_token_id)
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(
                f"prompt {number} has {half} in it, half of a surrogate pair and no character: "
                "leave it out, or write both halves"
            ) from error
        _check_ids(ids, number, vocab_size, room)
        encoded.append(ids)
    return encoded


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of chat messages."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and all(isinstance(message, Mapping) for message in prompt)


def token_ids(prompt: Any, what: str) -> list[int]:
    """The ids of a prompt that is given as ids.

    Parameters
    ----------
    prompt : sequence, array or tensor of int
    what : str
        Whose they are, for the message.

    Raises
    ------
    TypeError
        If it is no such sequence: a float is not rounded, nothing is left out.
    """
    ids = prompt.tolist() if isinstance(prompt, Tensor | np.ndarray) else prompt
    wanted = "a text, a list of chat messages, a sequence of token ids, or None"
    if not isinstance(ids, Sequence) or isinstance(ids, bytes | bytearray):
        raise TypeError(f"{what} is of type {type(prompt).__name__}; it must be {wanted}")
    plain = [i.item() if isinstance(i, Tensor) and i.ndim == 0 else i for i in ids]
    for i in plain:
        if isinstance(i, bool) or not isinstance(i, Integral):
            raise TypeError(f"{what} has {i!r} in it, which is no token id; it must be {wanted}")
    return [int(i) for i in plain]


def _check_list(prompts: Any) -> None:
    if isinstance(prompts, str | Mapping):
        raise TypeError(
            f"prompts must be a list, one entry per context; got a single "
            f"{type(prompts).__name__}: pass [prompt]"
        )
    sized = hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")
    if not sized or isinstance(prompts, bytes | Set) or getattr(prompts, "ndim", 1) == 0:
        raise TypeError(
            f"prompts must be a list, one entry per context; got {type(prompts).__name__}"
        )
    if len(prompts) == 0:
        raise ValueError("prompts is empty: pass at least one, or None for no prompt at all")
    first = next(iter(prompts))
    if isinstance(first, Mapping | Integral) or getattr(first, "ndim", 1) == 0:
        raise TypeError(
            "prompts must be a list of prompts; got one prompt (a chat or a list of token ids): "
            "pass [prompt]"
        )


def _check_ids(ids: list[int], number: int, vocab_size: int, room: int | None) -> None:
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


def _encode_one(
    prompt: Any, what: str, tokenizer: PreTrainedTokenizerBase | None, start_token_id: int | None
) -> list[int]:
    if prompt is None:
        if start_token_id is None:
            raise ValueError(
                "an unconditional continuation needs a start token, and neither the tokenizer nor "
                "the model's configuration names one: pass start_token_id= to CausalLM"
            )
        return [start_token_id]
    if not isinstance(prompt, str) and not is_chat(prompt):
        return token_ids(prompt, what)
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
    chat: Any = [dict(message) for message in prompt]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return _plain_ids(str(text), tokenizer)


def _plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text.encode()  # a tokenizer's own message for half of a surrogate pair names nothing
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
