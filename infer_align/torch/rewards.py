"""Reward functions of the field, evaluated on outcomes inside a Pyro program.

The contract is that of TRL's trainers: ``reward(prompts, completions, **columns)``, called by
keyword, one number a completion. Token ids stay the truth: text is decoded for the reward only.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infer_align.torch.policies import CausalLM

__all__ = ["classifier", "score"]

Reward = Callable[..., Sequence[float]]


def score(
    reward: Reward,
    y: Tensor,
    lm: CausalLM,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Tensor:
    """Values of a reward function on outcomes: what a program divides by beta and factors in.

    Parameters
    ----------
    reward : callable
        ``reward(prompts=..., completions=..., **columns) -> list of float``, one value for each
        completion; it also gets ``completion_ids`` if its signature has them. ``-inf`` rejects.
    y : int tensor (n, *contexts, T)
        Outcomes.
    lm : CausalLM
        Decodes them.
    prompts : list, optional
        The contexts; ``None`` for an unconditional model.
    columns : mapping from name to list, optional
        Data columns, one entry a prompt, passed on to the reward.

    Returns
    -------
    float64 tensor (n, *contexts)

    Raises
    ------
    ValueError
        For a wrong number of values, or a value that is ``None`` or NaN.
    """
    shape = y.shape[:-1]
    rows = y.reshape(-1, y.shape[-1])
    repeat = shape[0] if prompts is not None else math.prod(shape)
    arguments: dict[str, Any] = {
        "prompts": list(prompts if prompts is not None else [None]) * repeat,
        "completions": lm.decode(rows),
    }
    wanted = inspect.signature(reward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    if open_ended or "completion_ids" in wanted:
        ids = rows.tolist()
        arguments["completion_ids"] = [r[:k] for r, k in zip(ids, lm.lengths(rows), strict=True)]
    for name, values in (columns or {}).items():
        if open_ended or name in wanted:
            arguments[name] = list(values) * repeat
    values = reward(**arguments)
    return _as_tensor(values, reward, arguments["completions"]).reshape(shape).to(y.device)


def _as_tensor(values: Any, reward: Reward, completions: list[str]) -> Tensor:
    name = getattr(reward, "__name__", type(reward).__name__)
    got = len(values) if isinstance(values, Sequence | Tensor) else None
    if got != len(completions):
        raise ValueError(
            f"reward {name!r} returned {'no list' if got is None else f'{got} values'} for "
            f"{len(completions)} completions; it must return a list with one number for each"
        )
    numbers = [math.nan if v is None else float(v) for v in values]
    bad = [i for i, v in enumerate(numbers) if math.isnan(v) or v == math.inf]
    if bad:
        raise ValueError(
            f"reward {name!r} returned {values[bad[0]]} for {len(bad)} of {len(numbers)} "
            f"completions, the first {completions[bad[0]]!r}; return a finite number, or -inf to "
            "reject the outcome"
        )
    return torch.tensor(numbers, dtype=torch.float64)


def classifier(
    model: Any, tokenizer: Any, *, label: int | str | None = None, batch_size: int = 64
) -> Reward:
    """A Transformers sequence classifier as a reward on prompt + completion.

    A text longer than the classifier's context is cut at its end.

    Parameters
    ----------
    model : PreTrainedModel
        For sequence classification.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer; needs a padding token.
    label : int or str, optional
        Class whose log-probability is the reward; a name is looked up in ``model.config``.
        Leave it out for a model with one output, whose value is the reward.
    batch_size : int
        Texts a forward pass.

    Returns
    -------
    callable
        A reward function for `score`.

    Raises
    ------
    ValueError
        For several outputs without a label, a label that the model does not have, or a label
        for a model with one output.
    """
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

    # Not every tokenizer knows how much its model can read.
    context = min(
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", tokenizer.model_max_length),
    )

    @torch.no_grad()
    def reward(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        model.eval()
        texts = [_text(p) + c for p, c in zip(prompts, completions, strict=True)]
        values: list[float] = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size], return_tensors="pt", padding=True,
                truncation=True, max_length=context,
            )  # fmt: skip
            logits = model(**batch.to(model.device)).logits.float()
            chosen = logits[:, 0] if outputs == 1 else logits.log_softmax(-1)[:, index]
            values += chosen.tolist()
        return values

    return reward


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        return "\n".join(str(message["content"]) for message in prompt) + "\n"
    return ""
