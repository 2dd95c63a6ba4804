r"""Learnt twists of a language model: a head on its hidden states.

A head maps the hidden state h_t of a prefix to log ψ_{t+1} of every next token, so that a filter
draws tokens from prior·ψ without a further pass of the network.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from infer_align.samplers import Source, WeightedSample
from infer_align.samplers._contrastive import Contrast, contrast
from infer_align.torch.token_streams import ContinuationStream

__all__ = ["HeadTwist", "TwistHead", "TwistStep", "fit_twist", "head_twist"]


class TwistHead(nn.Module):
    r"""A low-parametric head, read out by the model's own token embeddings.

    .. math:: \log ψ(v | h) = e_v^\top A\, h + b^\top h + c, \qquad A = b = c = 0 \text{ at first}

    D² + D + 1 parameters for hidden states of D entries, whatever the vocabulary.

    Parameters
    ----------
    embeddings : tensor (V, D)
        Frozen: the weight of the model's language-model head.

    Examples
    --------
    >>> import torch
    >>> from infer_align.torch.twists import TwistHead
    >>> head = TwistHead(torch.eye(3))
    >>> tuple(head(torch.ones(2, 1, 3)).shape), bool((head(torch.ones(2, 1, 3)) == 0).all())
    ((2, 1, 3), True)
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)
        size, dtype = embeddings.shape[1], embeddings.dtype
        settings: Any = {"dtype": dtype, "device": embeddings.device}
        self.rotate = nn.Linear(size, size, bias=False, **settings)
        self.level = nn.Linear(size, 1, **settings)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log ψ of each next token, (..., V), of hidden states (..., D)."""
        return self.rotate(hidden) @ self.embeddings.T + self.level(hidden)


class HeadTwist:
    """A head bound to the stream whose hidden states it reads; see `head_twist`."""

    def __init__(self, head: nn.Module, stream: ContinuationStream) -> None:
        self.head, self.stream = head, stream
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def next_log_psi(self, prefix: Any) -> Tensor:
        """Log ψ of each next token, (n, C, V), of the prefixes that the stream stands at."""
        hidden = self.stream.hidden
        if hidden is None or tuple(hidden.shape[:2]) != tuple(prefix.shape[:2]):
            raise ValueError(
                "a head reads the hidden states of its own stream: make it with "
                "token_stream(lm(prompts), hidden=True) and pass the same stream to smc"
            )
        if prefix.shape[-1] == 0:
            self._seen = []
        self._seen.append(hidden)
        return self.head(hidden)


def head_twist(stream: ContinuationStream, head: nn.Module | None = None) -> HeadTwist:
    """A twist from a head on the hidden states of a stream.

    Parameters
    ----------
    stream : ContinuationStream
        Of ``token_stream(lm(prompts), hidden=True)``; pass it to `smc` as well.
    head : nn.Module, optional
        Hidden states (..., D) to log ψ of each next token (..., V). Default: a new `TwistHead` on
        the model's embeddings, ψ = 1 at first.

    Examples
    --------
    >>> import torch
    >>> from infer_align import samplers, tilt
    >>> from infer_align.torch import CausalLM, source
    >>> from infer_align.torch.token_streams import token_stream
    >>> from infer_align.torch.twists import head_twist
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2,
    ...                                    n_positions=8, bos_token_id=0, eos_token_id=4))
    >>> lm = CausalLM(model, None, max_new_tokens=4)
    >>> target = tilt(lm([[1, 2]]), lambda y: 1.0 * (y == 3).sum(-1), beta=1.0)
    >>> stream = token_stream(lm([[1, 2]]), hidden=True)
    >>> sample = samplers.smc(source(target), 8, twist=head_twist(stream), stream=stream)
    >>> sample.log_weights.shape
    (8, 1)
    """
    return HeadTwist(TwistHead(stream.embeddings) if head is None else head, stream)


class TwistStep(NamedTuple):
    """One step of learning; the head is changed in place."""

    index: int
    sample: WeightedSample
    """What `smc` gave with the head before the step."""
    metrics: dict[str, float]
    """``ess`` (share of n, the mean over contexts), ``log_z``, ``grad_norm``, ``skipped``."""


def fit_twist(
    source: Source,
    twist: HeadTwist,
    *,
    n: int = 64,
    steps: int = 100,
    optimizer: torch.optim.Optimizer | None = None,
    outcomes: Any = None,
) -> Iterator[TwistStep]:
    r"""Learn a head by contrast: outcomes of the target against prefixes of the twist.

    .. math:: ∇ \sum_t KL(p(y_{1:t}) ‖ π_t^ψ) = -\sum_t \left( E_p[∇ \log ψ_t(y_{1:t})]
              - E_{π_t^ψ}[∇ \log ψ_t(y_{1:t})] \right), \qquad π_t^ψ ∝ q(y_{1:t}) ψ_t(y_{1:t})

    Zhao, Brekelmans, Makhzani and Grosse 2024 (arXiv 2404.17546). The network is frozen; a step
    costs n outcomes, and as many again for the hidden states of the positive ones.

    Parameters
    ----------
    source : Source
        Of the target; its proposal is the twist's stream.
    twist : HeadTwist
    n : int
        Particles.
    steps : int
    optimizer : torch.optim.Optimizer, optional
        Default Adam at 1e-3.
    outcomes : tensor (k, \*contexts, T), optional
        Exact draws of the target. Default: those of the filter itself, by their weights; a
        context where it accepts none is skipped.

    Yields
    ------
    TwistStep

    Raises
    ------
    ValueError
        For a gradient that is not finite.
    """
    head = twist.head
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3) if optimizer is None else optimizer
    given = None if outcomes is None else np.asarray(torch.as_tensor(outcomes).cpu())
    for index in range(steps):
        batch = contrast(source, twist.stream, twist, n, outcomes=given)
        seen = twist._seen
        optimizer.zero_grad()
        _backward(head, _chosen(seen, batch), batch.prefixes, batch.negative)
        positive = _hidden_along(twist.stream, batch.outcomes)
        tokens = np.broadcast_to(batch.outcomes, (len(positive), *batch.outcomes.shape))
        _backward(head, positive, tokens, -batch.positive)
        norm = float(sum((p.grad**2).sum() for p in head.parameters() if p.grad is not None) ** 0.5)
        skipped = float(not batch.positive.any())
        if not np.isfinite(norm):
            raise ValueError(
                f"step {index}: the gradient of the twist is not finite; take a smaller learning "
                "rate"
            )
        if not skipped:
            optimizer.step()
        yield TwistStep(
            index,
            batch.sample,
            {**_quality(batch.sample), "grad_norm": norm, "skipped": skipped},
        )


def _chosen(seen: list[Tensor], batch: Contrast) -> list[Tensor]:
    """Hidden states behind each token drawn, in the order of the particles that drew it."""
    out = []
    for hidden, ancestors in zip(seen, batch.ancestors, strict=True):
        if ancestors is not None:
            index = torch.as_tensor(ancestors, device=hidden.device)[..., None]
            hidden = hidden.gather(0, index.expand_as(hidden))
        out.append(hidden)
    return out


def _hidden_along(stream: ContinuationStream, outcomes: np.ndarray) -> list[Tensor]:
    """Hidden states before each token of outcomes (k, C, T)."""
    stream.start(len(outcomes))
    states = [stream.hidden]
    for t in range(outcomes.shape[-1] - 1):
        stream.advance(np.clip(outcomes[..., t], 0, stream.vocabulary_size - 1))
        states.append(stream.hidden)
    return [x for x in states if x is not None]


def _backward(
    head: nn.Module, hidden: list[Tensor], tokens: np.ndarray, coefficients: np.ndarray
) -> None:
    """Add the gradient of Σ coefficients · log ψ; tokens (T, k, C, T), one pass for each t."""
    for t, states in enumerate(hidden):
        weights = torch.as_tensor(coefficients[t], device=states.device, dtype=states.dtype)
        values = head(states)
        token = np.clip(tokens[t, ..., t], 0, values.shape[-1] - 1)
        index = torch.as_tensor(token, device=states.device)[..., None]
        (weights * values.gather(-1, index)[..., 0]).sum().backward()


def _quality(sample: WeightedSample) -> dict[str, float]:
    squares = (sample.probabilities**2).sum(axis=0)
    ess = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1.0), 0.0)
    ess = ess / len(sample.log_weights)
    return {"ess": float(np.mean(ess)), "log_z": float(np.mean(sample.log_z))}
