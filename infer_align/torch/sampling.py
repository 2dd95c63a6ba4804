"""Draw continuations and their log-probabilities in one pass with a key-value cache.

Sampling is pure: temperature 1, the whole vocabulary, no logits processor, whatever the
model's shipped ``generation_config`` asks for. Each token is the inverse of the cumulative
distribution at a uniform number; the uniforms are drawn first, one per row and step, so that
what a seed gives does not depend on how the rows were batched, on early stopping or on the
rows that finished before.

Prompts of unequal length share a pass where the network bears the padding, as a recurrent state
does not; see `infer_align.torch.handling`.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from infer_align._threads import alone
from infer_align.torch import scoring
from infer_align.torch.decoding import Decoder
from infer_align.torch.handling import Handling, by_side
from infer_align.torch.networks import Network

COMPACT_BELOW = 0.75
"""Share of unfinished rows under which the finished ones leave the batch."""


@torch.no_grad()
def sample(
    network: Network,
    prompts: Sequence[Sequence[int]],
    index: Tensor,
    length: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Continuations of ``prompts[index[r]]`` for each row r, with their log-probabilities.

    Parameters
    ----------
    network : Network
        The model.
    prompts : sequence of token-id sequences
        The contexts, none empty.
    index : int tensor (rows,)
        Which prompt each row continues.
    length : int
        Largest number of new tokens T.
    generator : torch.Generator or None
        Source of the uniforms; ``None`` for torch's default generator.

    Returns
    -------
    tokens : int tensor (rows, T)
        Filled with the first EOS id after an outcome's end.
    log_prob : float tensor (rows,)
        Sum over the tokens, EOS included, in nats.
    """
    network.counts["sampled_rows"] += len(index)
    device = torch.device("cpu") if generator is None else generator.device
    with alone() if generator is None else nullcontext():  # others fork torch's own generator
        uniforms = torch.rand(
            len(index), length, dtype=torch.float64, generator=generator, device=device
        ).to(network.device)
    fill = network.eos_token_ids[0] if network.eos_token_ids else 0
    tokens = torch.full((len(index), length), fill, device=network.device)
    log_prob = torch.zeros(len(index), dtype=network.dtype, device=network.device)
    index = index.cpu()
    with network.turn():
        for rows, handling in _batches(network, prompts, index, length):
            tokens[rows], drawn = _decode(network, prompts, index[rows], uniforms[rows], handling)
            log_prob[rows] = drawn.to(log_prob)  # some networks compute their logits in float32
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError(scoring.NOT_FINITE.format("sampling"))
    return tokens, log_prob


def _batches(
    network: Network, prompts: Sequence[Sequence[int]], index: Tensor, length: int
) -> Iterator[tuple[Tensor, Handling]]:
    """Rows to decode together, by prompt length and within the token budget, and how."""
    lengths = torch.tensor([len(p) for p in prompts])[index]
    order = torch.argsort(lengths, stable=True)
    for rows, handling in by_side(network, lengths, length):
        group = order[torch.isin(order, rows)]
        parts = [group]
        if not handling.padded:
            parts = [group[lengths[group] == n] for n in lengths[group].unique()]
        for part in parts:
            width = int(lengths[part].max()) + length
            for batch in part.split(max(1, network.token_budget // width)):
                yield batch, handling


def _decode(
    network: Network,
    prompts: Sequence[Sequence[int]],
    index: Tensor,
    uniforms: Tensor,
    handling: Handling,
) -> tuple[Tensor, Tensor]:
    """One batch: prompts once, then a token per step for the rows still unfinished."""
    distinct, row_prompt = torch.unique(index, return_inverse=True)
    rows, length = uniforms.shape
    decoder = Decoder(network, [prompts[int(p)] for p in distinct], row_prompt, handling)
    fill = network.eos_token_ids[0] if network.eos_token_ids else 0
    tokens = torch.full((rows, length), fill, device=network.device)
    log_prob = decoder.logits.new_zeros(rows)
    in_batch = torch.arange(rows, device=network.device)
    live = torch.ones(rows, dtype=torch.bool, device=network.device)
    for step in range(length):
        token, score = _invert(decoder.logits, uniforms[in_batch, step])
        token = torch.where(live, token, fill)
        tokens[in_batch, step] = token
        log_prob[in_batch] += torch.where(live, score, 0.0)
        live = live & ~network.is_eos(token)
        left = int(live.sum())
        if step + 1 == length or left == 0:
            break
        if left < COMPACT_BELOW * len(live):
            kept = live.nonzero()[:, 0]
            decoder.keep(kept)
            token, in_batch, live = token[kept], in_batch[kept], live[kept]
        decoder.advance(token)
    return tokens, log_prob


def _invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token at which the cumulative distribution passes ``uniform``, and its log-probability."""
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    # In float32 the cumulative sum of a large vocabulary would misplace the rare tokens.
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    level = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, level, right=True).clamp(max=logits.shape[-1] - 1)
    return token[:, 0], log_probs.gather(-1, token)[:, 0]
