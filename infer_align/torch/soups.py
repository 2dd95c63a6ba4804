r"""Weight-averaged references: model soups.

.. math:: \barθ = \sum_i w_i θ_i, \qquad \sum_i w_i = 1
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infer_align.torch.policies import CausalLM
from infer_align.torch.storage import plain_copy
from infer_align.torch.token_products import check_alike

__all__ = ["weight_average"]


@torch.no_grad()
def weight_average(
    models: Sequence[CausalLM], weights: Sequence[float | int] | None = None
) -> CausalLM:
    """A frozen model whose parameters are the weighted mean of several models'.

    Model soups (Wortsman et al. 2022, arXiv 2203.05482); as the reference of a tilt, SALSA's
    (Chegini et al. 2024, arXiv 2411.01798). The law of the averaged network is not a mixture of
    the models' laws, arithmetic or geometric.

    Parameters
    ----------
    models : sequence of CausalLM
        Of one architecture, tokenizer, EOS, start token and ``max_new_tokens``; without adapters.
        They are not changed.
    weights : sequence of float, optional
        Summing to one; one above 1 (and another below 0) extrapolates. Default: all alike.

    Returns
    -------
    CausalLM
        Frozen, with the first model's tokenizer. Parameters are averaged in float64.

    Raises
    ------
    ValueError
        For models that do not fit together, or weights that are not finite or do not sum to one.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from infer_align.torch import CausalLM, weight_average
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> one, other = (CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4) for _ in range(2))
    >>> soup = weight_average([one, other], [0.75, 0.25])
    >>> a, b, mean = (m.module.lm_head.weight for m in (one, other, soup))
    >>> bool(torch.allclose(0.75 * a + 0.25 * b, mean)), soup.is_trainable
    (True, False)
    """
    if not models:
        raise ValueError("weight_average needs at least one model, got none")
    shares = [1 / len(models)] * len(models) if weights is None else [float(w) for w in weights]
    if len(shares) != len(models):
        raise ValueError(
            f"weight_average needs a weight for each model, got {len(shares)} weights and "
            f"{len(models)} models"
        )
    if not all(math.isfinite(w) for w in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"the weights of averaged parameters are finite and sum to one, got {shares}; divide "
            f"them by their sum, {sum(shares):g}"
        )
    _check(models)
    first = models[0]
    module = plain_copy(first._network.shared)
    states = [m._network.shared.module.state_dict() for m in models]
    mean = {name: _mean([s[name] for s in states], shares) for name in states[0]}
    module.load_state_dict(mean)
    return CausalLM(
        module,
        first.tokenizer,
        max_new_tokens=first.max_new_tokens,
        eos_token_ids=first.eos_token_ids,
        start_token_id=first.start_token_id,
        token_budget=first.token_budget,
    )


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    total: Any = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    return total.to(tensors[0].dtype)


def _check(models: Sequence[CausalLM]) -> None:
    """Refuse models whose parameters do not correspond."""
    for number, model in enumerate(models):
        network = model._network
        if network.adapter is not None or network.shared.peft is not None:
            raise ValueError(
                f"model {number} has an adapter, and weight_average averages whole models; fit "
                "with trainable() instead of trainable(lora=...), or merge the adapter with peft "
                "and load the result"
            )
    check_alike(models, "weight_average")
    one = models[0]._network.shared.module
    shapes = {name: tuple(p.shape) for name, p in one.state_dict().items()}
    for number, model in enumerate(models[1:], start=1):
        other = model._network.shared.module
        theirs = {name: tuple(p.shape) for name, p in other.state_dict().items()}
        differ = sorted(n for n in shapes.keys() | theirs.keys() if shapes.get(n) != theirs.get(n))
        if type(one) is not type(other) or differ:
            raise ValueError(
                f"weight_average needs models of one architecture: model 0 is a "
                f"{type(one).__name__}, model {number} a {type(other).__name__}, and "
                f"{len(differ)} parameters have other shapes or names"
                + (f", the first {differ[0]!r}" if differ else "")
                + "; average models that were fitted from one model"
            )
