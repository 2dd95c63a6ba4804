r"""Next-token log-probabilities of a language model, for particle filters.

All particles are rows of one batch, n × C of them: each distinct prompt is read once and its
key-value cache copied to its rows, every token is one pass, and resampling reorders the cache.
Of a mixture every component runs, with a cache of its own. Prompts of unequal length are padded
on the left, with explicit positions, as in `infer_align.torch.sampling`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infer_align.samplers._mixture_stream import MixtureStream
from infer_align.torch import sampling
from infer_align.torch.continuations import Continuations
from infer_align.torch.sources import Mixture

__all__ = ["ContinuationStream", "token_stream"]


def token_stream(
    distribution: Any, shape: tuple[int, ...] | None = None, *, hidden: bool = False
) -> "ContinuationStream | MixtureStream":
    """The continuations of a `CausalLM`, one token after the other.

    Parameters
    ----------
    distribution : Continuations or Mixture
        ``lm(prompts)``, or a `mixture` of such given its prompts; the prompts' axes are flattened
        to one.
    shape : tuple of int, optional
        Of the contexts, to check.
    hidden : bool
        Keep the last hidden states, for a twist head; not of a mixture.

    Returns
    -------
    ContinuationStream or MixtureStream
        A `TokenStream`.

    Raises
    ------
    ValueError
        For any other distribution or other contexts, a mixture of different token sequences, or a
        model with recurrent layers and prompts of unequal length: padding would enter its state.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from infer_align.torch import CausalLM
    >>> from infer_align.torch.token_streams import token_stream
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=4)
    >>> stream = token_stream(lm([[1, 2], [3]]))
    >>> tuple(stream.start(7).shape), tuple(stream.advance(torch.zeros(7, 2, dtype=int)).shape)
    ((7, 2, 5), (7, 2, 5))
    """
    if isinstance(distribution, Mixture):
        if hidden:
            raise ValueError(
                "a twist head reads the hidden states of one model, and this is a mixture of "
                f"{len(distribution.components)}; give the stream of one of them"
            )
        streams = [token_stream(d, shape) for d in distribution.components]
        return MixtureStream(streams, distribution.log_weights)
    if not isinstance(distribution, Continuations):
        raise ValueError(
            f"a {type(distribution).__name__} is not known here as a law of token sequences; "
            "sequential Monte Carlo needs the continuations of a CausalLM, lm(prompts), or a "
            "mixture of such"
        )
    if shape is not None and tuple(shape) != tuple(distribution.batch_shape):
        raise ValueError(
            f"the proposal has contexts of shape {tuple(distribution.batch_shape)}, the target of "
            f"shape {tuple(shape)}; give both the same prompts"
        )
    return ContinuationStream(distribution, hidden=hidden)


class ContinuationStream:
    """A `TokenStream` over a language model, made by `token_stream`.

    Parameters
    ----------
    continuations : Continuations
    hidden : bool
        Keep the last hidden states in ``hidden``.
    """

    def __init__(self, continuations: Continuations, *, hidden: bool = False) -> None:
        network = continuations.network
        self.length = continuations.max_new_tokens
        self.vocabulary_size = network.vocab_size
        self.eos = network.eos_token_ids
        self.pad = self.eos[0] if self.eos else 0
        self.hidden: Tensor | None = None
        """What the language-model head read of each prefix, (n, C, D); if asked for."""
        self._network, self._keeps_hidden = network, hidden
        self._index = continuations._index.reshape(-1)
        self._prompts = continuations.prompts
        lengths = {len(self._prompts[int(p)]) for p in self._index}
        if len(lengths) > 1 and sampling._has_recurrent_state(network):
            raise ValueError(
                "this model has recurrent layers, whose state the padding of shorter prompts "
                f"would enter: give prompts of one length, or one at a time; got {sorted(lengths)}"
            )

    @property
    def embeddings(self) -> Tensor:
        """What the language-model head multiplies hidden states with, (V, D)."""
        head: Any = self._network.shared.module.get_output_embeddings()
        return head.weight[: self.vocabulary_size]

    @torch.no_grad()
    def start(self, n: int) -> Tensor:
        """Read the prompts; log-probabilities of the first token, (n, C, V)."""
        network = self._network
        network.activate()
        network.counts["sampled_rows"] += n * len(self._index)
        distinct, prompt = torch.unique(self._index, return_inverse=True)
        rows = prompt.to(network.device).repeat(n)
        prompts = [self._prompts[int(p)] for p in distinct]
        ids, mask = sampling._pad_left(prompts, network.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, hidden = self._forward(ids, mask, positions, None)
        self._cache.reorder_cache(rows)
        self._mask, self._position = mask[rows], positions[rows, -1:]
        return self._log_probs(n, logits[rows], None if hidden is None else hidden[rows])

    @torch.no_grad()
    def advance(self, tokens: Any, ancestors: np.ndarray | None = None) -> Tensor:
        """Log-probabilities of the token after ``tokens``, (n, C, V)."""
        self._network.activate()
        device = self._network.device
        tokens = torch.as_tensor(tokens, device=device)
        n, contexts = tokens.shape
        if ancestors is not None:
            # Row i·C + c: particle i of context c. Contexts do not mix, so masks stay.
            rows = torch.as_tensor(ancestors * contexts + np.arange(contexts), device=device)
            self._cache.reorder_cache(rows.reshape(-1))
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=-1)
        self._position = self._position + 1
        ids = tokens.reshape(-1, 1)
        logits, hidden = self._forward(ids, self._mask, self._position, self._cache)
        return self._log_probs(n, logits, hidden)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the last column, and the hidden state that they were read off."""
        if not self._keeps_hidden:
            logits, self._cache = self._network(ids, mask, positions, 1, cache, use_cache=True)
            return logits[:, -1], None
        with HeadInput(self._network.shared.module) as seen:
            logits, self._cache = self._network(ids, mask, positions, 1, cache, use_cache=True)
        return logits[:, -1], seen.value[:, -1]

    def _log_probs(self, n: int, logits: Tensor, hidden: Tensor | None) -> Tensor:
        if not bool(torch.isfinite(logits).all()):
            raise FloatingPointError(
                "the network gave logits that are not finite; check its weights, or load it with "
                "dtype=torch.float32 if it ran in a half-precision type"
            )
        shape = (n, len(self._index), -1)
        self.hidden = None if hidden is None else hidden.reshape(shape)
        return logits.log_softmax(-1).reshape(shape)


class HeadInput:
    """What the language-model head of a module reads while this context lasts.

    Parameters
    ----------
    module : PreTrainedModel
    """

    def __init__(self, module: Any) -> None:
        self._head: nn.Module = module.get_output_embeddings()

    def __enter__(self) -> "HeadInput":
        self._hook = self._head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _keep(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]
