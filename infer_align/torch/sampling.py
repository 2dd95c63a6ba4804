"""Draw continuations and their log-probabilities in one pass with a key-value cache.

Sampling is pure: temperature 1, the whole vocabulary, no logits processor, whatever the
model's shipped ``generation_config`` asks for. Each token is the inverse of the cumulative
distribution at a uniform number; the uniforms are drawn first, one per row and step, so that
what a seed gives does not depend on how the rows were batched, on early stopping or on the
rows that finished before.

Each distinct prompt is read once and its cache copied to its rows. Prompts of unequal length
are padded on the left, with explicit positions, so that a row's tokens stay contiguous (a
sliding window counts columns); models with a recurrent state, which padding would enter, are
sampled one prompt length at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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
    network.activate()
    network.counts["sampled_rows"] += len(index)
    device = torch.device("cpu") if generator is None else generator.device
    uniforms = torch.rand(
        len(index), length, dtype=torch.float64, generator=generator, device=device
    ).to(network.device)
    fill = network.eos_token_ids[0] if network.eos_token_ids else 0
    tokens = torch.full((len(index), length), fill, device=network.device)
    log_prob = torch.zeros(len(index), dtype=network.dtype, device=network.device)
    for rows in _batches(network, prompts, index.cpu(), length):
        tokens[rows], log_prob[rows] = _decode(network, prompts, index.cpu()[rows], uniforms[rows])
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError(
            "the network gave logits that are not finite while sampling; check its weights, or "
            "load it with dtype=torch.float32 if it ran in a half-precision type"
        )
    return tokens, log_prob


def _batches(
    network: Network, prompts: Sequence[Sequence[int]], index: Tensor, length: int
) -> Iterator[Tensor]:
    """Rows to decode together: sorted by prompt length, within the token budget."""
    lengths = torch.tensor([len(p) for p in prompts])[index]
    order = torch.argsort(lengths, stable=True)
    mixed = not _has_recurrent_state(network)
    groups = [order] if mixed else [order[lengths[order] == n] for n in lengths.unique()]
    for group in groups:
        width = int(lengths[group].max()) + length
        yield from group.split(max(1, network.token_budget // width))


def _has_recurrent_state(network: Network) -> bool:
    """True if some layer is neither full nor sliding-window attention."""
    config = network.shared.module.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return any("attention" not in k or "linear" in k for k in kinds)


def _decode(
    network: Network, prompts: Sequence[Sequence[int]], index: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """One batch: prompts once, then a token per step for the rows still unfinished."""
    distinct, row_prompt = torch.unique(index, return_inverse=True)
    ids, mask = _pad_left([prompts[int(p)] for p in distinct], network.device)
    rows, length = uniforms.shape
    as_read = torch.equal(row_prompt, torch.arange(len(distinct)))
    row_prompt = row_prompt.to(network.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits, cache = network(ids, mask, positions, keep=1, use_cache=True)
    logits, mask, position = logits[row_prompt, -1], mask[row_prompt], positions[row_prompt, -1:]
    if not as_read:
        cache.reorder_cache(row_prompt)

    fill = network.eos_token_ids[0] if network.eos_token_ids else 0
    tokens = torch.full((rows, length), fill, device=network.device)
    log_prob = logits.new_zeros(rows)
    in_batch = torch.arange(rows, device=network.device)
    live = torch.ones(rows, dtype=torch.bool, device=network.device)
    for step in range(length):
        token, score = _invert(logits, uniforms[in_batch, step])
        token = torch.where(live, token, fill)
        tokens[in_batch, step] = token
        log_prob[in_batch] += torch.where(live, score, 0.0)
        live = live & ~network.is_eos(token)
        left = int(live.sum())
        if step + 1 == length or left == 0:
            break
        if left < COMPACT_BELOW * len(live):
            kept = live.nonzero()[:, 0]
            cache.reorder_cache(kept)
            token, mask, position = token[kept], mask[kept], position[kept]
            in_batch, live = in_batch[kept], live[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        position = position + 1
        logits, cache = network(token[:, None], mask, position, 1, cache, use_cache=True)
        logits = logits[:, -1]
    return tokens, log_prob


def _invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token at which the cumulative distribution passes ``uniform``, and its log-probability."""
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    # In float32 the cumulative sum of a large vocabulary would misplace the rare tokens.
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    level = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, level, right=True).clamp(max=logits.shape[-1] - 1)
    return token[:, 0], log_probs.gather(-1, token)[:, 0]


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts that end at the same column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
