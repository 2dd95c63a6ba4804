"""Sequence classifiers of Transformers as reward functions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from infer_align._arguments import count
from infer_align.torch.prompts import is_chat

__all__ = ["classifier"]

UNKNOWN_LENGTH = 10**9
"""A tokenizer that does not know how much its model reads says 1e30."""


def classifier(
    model: Any, tokenizer: Any, *, label: int | str | None = None, batch_size: int = 64
) -> Callable[..., list[float]]:
    """A Transformers sequence classifier as a reward on prompt + completion.

    A prompt in text and its completion are one text, with the special tokens that the classifier's
    tokenizer adds. A chat and its completion, as the assistant's message, go through that
    tokenizer's chat template, which writes the special tokens itself. What is longer than the
    classifier's context is cut at its end.

    Parameters
    ----------
    model : PreTrainedModel
        For sequence classification. Its configuration gets the tokenizer's padding id, since a
        decoder reads the value at the last token before the padding.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer; needs a padding token, and for chats a chat template.
    label : int or str, optional
        Class whose log-probability is the reward; a name is looked up in ``model.config``.
        Leave it out for a model with one output, whose value is the reward.
    batch_size : int
        Texts a forward pass.

    Returns
    -------
    callable
        A reward function for `score`, which also decodes prompts that are token ids.

    Raises
    ------
    ValueError
        For several outputs without a label, a label that the model does not have, a label for a
        model with one output, or a tokenizer without a padding token or, at a chat, a template.
    TypeError
        For a prompt that is neither a text nor a chat, of a direct call.
    """
    count("batch_size", batch_size)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the classifier's tokenizer has no padding token, so texts of unequal length make no "
            "batch: set tokenizer.pad_token, for instance to tokenizer.eos_token"
        )
    outputs = model.config.num_labels
    index = _index(model, label)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    context = min(
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None) or UNKNOWN_LENGTH,
    )

    @torch.no_grad()
    def values(texts: list[str], *, add_special_tokens: bool) -> list[float]:
        model.eval()
        found: list[float] = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size], return_tensors="pt", padding=True,
                padding_side="right", add_special_tokens=add_special_tokens,
                truncation=context < UNKNOWN_LENGTH,
                max_length=context if context < UNKNOWN_LENGTH else None,
            )  # fmt: skip
            logits = model(**batch.to(model.device)).logits.float()
            chosen = logits[:, 0] if outputs == 1 else logits.log_softmax(-1)[:, index]
            found += chosen.tolist()
        return found

    def reward(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        texts = [_text(p, c, tokenizer) for p, c in zip(prompts, completions, strict=True)]
        found = [0.0] * len(texts)
        for chat in (False, True):
            rows = [i for i, prompt in enumerate(prompts) if is_chat(prompt) == chat]
            read = values([texts[i] for i in rows], add_special_tokens=not chat)
            for i, value in zip(rows, read, strict=True):
                found[i] = value
        return found

    reward.__name__ = "classifier"  # in messages
    return reward


def _index(model: Any, label: int | str | None) -> int | None:
    outputs = model.config.num_labels
    index = model.config.label2id.get(label) if isinstance(label, str) else label
    if outputs == 1 and label is not None:
        raise ValueError(
            f"the classifier has one output, whose value is the reward, and label is {label!r}; "
            "leave the label out"
        )
    if outputs > 1 and (index is None or not 0 <= index < outputs):
        raise ValueError(
            f"the classifier has {outputs} outputs and label is {label!r}; give one of "
            f"{sorted(model.config.label2id, key=str)} or an index below {outputs}"
        )
    return index


def _text(prompt: Any, completion: Any, tokenizer: Any) -> str:
    """What the classifier reads of a prompt and a completion."""
    if is_chat(prompt):
        if tokenizer.chat_template is None:
            raise ValueError(
                "a prompt is a chat, and the classifier's tokenizer has no chat template: set its "
                "chat_template to the one that the classifier was trained with, or give the "
                "prompts as text"
            )
        turn = [{"role": "assistant", "content": completion}]
        answer = turn if isinstance(completion, str) else [dict(m) for m in completion]
        chat = [dict(message) for message in prompt] + answer
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(
            f"the classifier got a prompt of type {type(prompt).__name__}; it reads texts and "
            "chats (score(reward, y, lm, prompts) decodes token ids for it)"
        )
    return (prompt or "") + completion
