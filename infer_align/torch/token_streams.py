r"""Next-token log-probabilities of a language model, for particle filters.

All particles are rows of one batch, n × C of them: each distinct prompt is read once and its
key-value cache copied to its rows, every token is one pass, and resampling reorders the cache.
Of a mixture every component runs, with a cache of its own. Prompts of unequal length share a pass
where the network bears it, as in `infer_align.torch.sampling`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infer_align.samplers._mixture_stream import MixtureStream
from infer_align.torch.continuations import Continuations
from infer_align.torch.decoding import Decoder
from infer_align.torch.handling import Handling, by_side
from infer_align.torch.scoring import NOT_FINITE
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
        For any other distribution or other contexts, or a mixture of different token sequences.

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
        self._parts = self._contexts_together()

    @property
    def embeddings(self) -> Tensor:
        """What the language-model head multiplies hidden states with, (V, D)."""
        head: Any = self._network.shared.module.get_output_embeddings()
        return head.weight[: self.vocabulary_size]

    @torch.no_grad()
    def start(self, n: int) -> Tensor:
        """Read the prompts; log-probabilities of the first token, (n, C, V)."""
        network = self._network
        network.counts["sampled_rows"] += n * len(self._index)
        self._decoders: list[Decoder] = []
        found = []
        for contexts, handling in self._parts:
            distinct, prompt = torch.unique(self._index[contexts], return_inverse=True)
            prompts = [self._prompts[int(p)] for p in distinct]
            rows = prompt.repeat(n)
            with network.turn(), self._head() as head:
                self._decoders.append(Decoder(network, prompts, rows, handling))
            hidden = head.value[rows.to(network.device), -1] if self._keeps_hidden else None
            found.append((self._decoders[-1].logits, hidden))
        return self._log_probs(n, found)

    @torch.no_grad()
    def advance(self, tokens: Any, ancestors: np.ndarray | None = None) -> Tensor:
        """Log-probabilities of the token after ``tokens``, (n, C, V)."""
        device = self._network.device
        tokens = torch.as_tensor(tokens, device=device)
        found = []
        for (contexts, _), decoder in zip(self._parts, self._decoders, strict=True):
            if ancestors is not None:
                # Row i·C + c: particle i of context c. Contexts do not mix, so masks stay.
                chosen = ancestors[:, contexts.numpy()]
                rows = chosen * len(contexts) + np.arange(len(contexts))
                decoder.keep(torch.as_tensor(rows.reshape(-1)))
            with self._network.turn(), self._head() as head:
                logits = decoder.advance(tokens[:, contexts.to(device)].reshape(-1))
            found.append((logits, head.value[:, -1] if self._keeps_hidden else None))
        return self._log_probs(len(tokens), found)

    def _contexts_together(self) -> list[tuple[Tensor, Handling]]:
        """Contexts whose rows share passes: of one prompt length, where padding is not borne."""
        lengths = torch.tensor([len(self._prompts[int(p)]) for p in self._index])
        parts = []
        for contexts, handling in by_side(self._network, lengths, self.length):
            some = lengths[contexts]
            groups = [some == some] if handling.padded else [some == w for w in some.unique()]
            parts += [(contexts[group], handling) for group in groups]
        return parts

    def _head(self) -> "HeadInput":
        return HeadInput(self._network.shared.module if self._keeps_hidden else None)

    def _log_probs(self, n: int, found: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Of all contexts, from the logits and hidden states of those that share passes."""
        if not all(bool(torch.isfinite(logits).all()) for logits, _ in found):
            raise FloatingPointError(NOT_FINITE.format("drawing token by token"))
        contexts = torch.cat([contexts for contexts, _ in self._parts])
        places = torch.argsort(contexts).to(self._network.device)
        logits = torch.cat([x.reshape(n, -1, x.shape[-1]) for x, _ in found], dim=1)
        hidden = [h.reshape(n, -1, h.shape[-1]) for _, h in found if h is not None]
        self.hidden = torch.cat(hidden, dim=1)[:, places] if hidden else None
        return logits.log_softmax(-1)[:, places]


class HeadInput:
    """What the language-model head of a module reads while this context lasts.

    Parameters
    ----------
    module : PreTrainedModel or None
        None for nothing to keep.
    """

    def __init__(self, module: Any | None) -> None:
        self._head: nn.Module | None = None if module is None else module.get_output_embeddings()

    def __enter__(self) -> "HeadInput":
        if self._head is not None:
            self._hook = self._head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._head is not None:
            self._hook.remove()

    def _keep(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.value = inputs[0]
