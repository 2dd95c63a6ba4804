r"""Products of language models token by token: next-token teachers and contrastive decoding.

.. math:: p(y_t | x, y_{<t}) = \frac{\prod_i p_i(y_t | x, y_{<t})^{w_i}}
          {\sum_v \prod_i p_i(v | x, y_{<t})^{w_i}}

The weights need not sum to one, and may be negative. AlignDistil's teacher is such a product
(Zhang et al. 2025, arXiv 2503.02832), and so are contrastive decoding (Li et al. 2022,
arXiv 2210.15097) and DExperts (Liu et al. 2021, arXiv 2105.03023).

It is *not* the sequence-level product Π p_i(y|x)^{w_i} / Z of ``product`` or
``geometric_mixture``: that has one Z for each prompt, this one normalises at each token. The
product of the normalisers of an outcome is the ratio of the two laws, up to Z.
"""

import copy
import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from infer_align._threads import alone
from infer_align.torch.continuations import Continuations
from infer_align.torch.handling import Handling, both
from infer_align.torch.networks import Network
from infer_align.torch.policies import CausalLM
from infer_align.torch.prompts import Prompt

__all__ = ["TokenProduct"]


class TokenProduct:
    r"""A product of language models, renormalised at each token: a callable like a `CausalLM`.

    Parameters
    ----------
    models : sequence of CausalLM
        p_i, with the same vocabulary, EOS, start token and ``max_new_tokens``. Trainable ones are
        fitted where the product is the policy.
    weights : sequence of float
        w_i, finite, one for each model.

    Raises
    ------
    ValueError
        For models that do not share these, or another number of weights than models.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from infer_align.torch import CausalLM, TokenProduct
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> good, bad = (CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4) for _ in range(2))
    >>> contrast = TokenProduct([good, bad], [1.5, -0.5])
    >>> y, _ = contrast([[1, 2], [3]]).sample_with_log_prob((7,))
    >>> tuple(y.shape), contrast.sample_score_difference([[1, 2]]) < 1e-4
    ((7, 2, 4), True)
    """

    provides = frozenset({"log_density", "samples", "next_token"})
    """What it gives as a target (``targets.teacher``): its law, draws, and next-token laws."""

    def __init__(self, models: Sequence[CausalLM], weights: Sequence[float | int]):
        if not models or len(models) != len(weights):
            raise ValueError(
                f"a token product needs a weight for each model, got {len(models)} models and "
                f"{len(weights)} weights"
            )
        if not all(math.isfinite(w) for w in weights) or not any(weights):
            raise ValueError(
                f"the weights of a token product must be finite and not all 0, got {list(weights)}"
            )
        check_alike(models, "a token product")
        self.models = tuple(models)
        self.weights = tuple(float(w) for w in weights)
        # A model's own front: prompts, text and lengths are the first model's, its network ours.
        self._front = copy.copy(models[0])
        self._front._network = ProductNetwork([m._network for m in models], self.weights)
        self._front._prior = None

    def __call__(self, prompts: Sequence[Prompt] | Tensor | None = None) -> Continuations:
        """Distribution of the continuations of some prompts, as `CausalLM` has it.

        Parameters
        ----------
        prompts : sequence, or None
        """
        return self._front(prompts)

    def decode(self, value: Tensor) -> Any:
        """Text of outcomes, as `CausalLM.decode`."""
        return self._front.decode(value)

    def lengths(self, value: Tensor) -> Tensor:
        """Number of tokens of each outcome, its EOS included."""
        return self._front.lengths(value)

    def encode_prompts(self, prompts: Sequence[Prompt] | Tensor) -> list[list[int]]:
        """Token ids of prompts, as `CausalLM.encode_prompts`."""
        return self._front.encode_prompts(prompts)

    def sample_score_difference(
        self,
        prompts: Sequence[Prompt] | Tensor | None = None,
        *,
        n: int = 64,
        generator: torch.Generator | None = None,
    ) -> float:
        """Largest gap between sampled and scored log-probabilities, in nats."""
        return self._front.sample_score_difference(prompts, n=n, generator=generator)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the trainable models among them."""
        seen: dict[int, nn.Parameter] = {}
        for model in self.models:
            seen |= {id(p): p for p in model.parameters()}
        return iter(seen.values())

    @property
    def tokenizer(self) -> Any:
        """The first model's."""
        return self._front.tokenizer

    @property
    def max_new_tokens(self) -> int:
        """T, the longest outcome."""
        return self._front.max_new_tokens

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an outcome."""
        return self._front.eos_token_ids

    @property
    def vocab_size(self) -> int:
        """Number of token ids that have a probability."""
        return self._front.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._front.device

    @property
    def token_budget(self) -> int:
        """Largest number of tokens of one forward pass: the least of the models'."""
        return self._front.token_budget

    @property
    def counts(self) -> Counter:
        """As `CausalLM.counts`; a call of every network counts as one."""
        return self._front.counts

    def __repr__(self):
        return f"TokenProduct({list(self.models)}, {list(self.weights)})"


class ProductNetwork(Network):
    """Networks run side by side, each with its own cache; the logits are Σ w_i log p_i."""

    def __init__(self, networks: Sequence[Network], weights: Sequence[float]):
        self.networks, self.weights = tuple(networks), tuple(weights)
        budget = min(n.token_budget for n in networks)
        super().__init__(networks[0].shared, None, networks[0].eos_token_ids, budget)

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the networks' types, at least float32."""
        wide = torch.float32
        for network in self.networks:
            wide = torch.promote_types(wide, network.dtype)
        return wide

    @property
    def rounding(self) -> float:
        """Of all networks, as their logits are weighted."""
        given = zip(self.networks, self.weights, strict=True)
        return sum(abs(w) * n.rounding for n, w in given)

    @property
    def context_length(self) -> int | None:
        """The shortest of the networks'."""
        known = [n.context_length for n in self.networks if n.context_length is not None]
        return min(known, default=None)

    def side(self, prompt: int, new: int) -> tuple[Any, ...]:
        """The sides of all networks."""
        return tuple(n.side(prompt, new) for n in self.networks)

    def handling(self, side: tuple[Any, ...], read: int) -> Handling:
        """What all networks bear that have a weight."""
        given = zip(self.networks, side, self.weights, strict=True)
        return functools.reduce(both, [n.handling(s, read) for n, s, w in given if w != 0])

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `Network.turn`; each network is switched to its adapter just before it runs."""
        adapted = any(n.shared.peft is not None for n in self.networks)
        with alone() if adapted else nullcontext():
            yield

    def __call__(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        keep: int,
        cache: Any = None,
        *,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Logits of the last ``keep`` columns, and the caches of all networks."""
        self.counts["network_calls"] += 1
        total: Any = None
        caches = []
        for k, (network, weight) in enumerate(zip(self.networks, self.weights, strict=True)):
            if weight == 0:
                caches.append(None)
                continue
            network.activate()
            own = None if cache is None else cache.parts[k]
            logits, own = network(input_ids, mask, positions, keep, own, use_cache=use_cache)
            caches.append(own)
            term = weight * logits.to(self.dtype).log_softmax(-1)
            total = term if total is None else total + term
        return total, Caches(caches)


class Caches:
    """Key-value caches of several networks, reordered together."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = tuple(parts)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on from other rows, in every network."""
        for part in self.parts:
            if part is not None:
                part.reorder_cache(beam_idx)


def check_alike(models: Sequence[CausalLM], who: str) -> None:
    """Refuse models whose outcomes are not the same tokens."""
    first = models[0]
    for number, model in enumerate(models[1:], start=1):
        for what in ("vocab_size", "eos_token_ids", "max_new_tokens", "start_token_id", "device"):
            ours, theirs = getattr(first, what), getattr(model, what)
            if ours != theirs:
                raise ValueError(
                    f"the models of {who} must have the same {what}; model 0 has {ours} and model "
                    f"{number} has {theirs}: load them with equal arguments, and models of one "
                    "tokenizer"
                )
        one, other = first.tokenizer, model.tokenizer
        if one is not None and other is not None and one.get_vocab() != other.get_vocab():
            raise ValueError(
                f"the models of {who} must have the same tokens; those of model 0 and model "
                f"{number} differ: use models of one tokenizer"
            )
