"""Log-probabilities of given continuations: one teacher-forced pass, prompts read along.

Rows are padded on the right, after their last token, with explicit positions and mask, so a
row's numbers do not depend on its neighbours. The language-model head runs on the columns
that predict completion tokens only. A token's log-probability is its logit minus the
logsumexp of its column, in at least float32; the tokens after the first EOS carry none.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infer_align.torch.handling import by_side
from infer_align.torch.networks import Network

NOT_FINITE = (
    "the network gave logits that are not finite while {}; check its weights, or load it with "
    "dtype=torch.float32 if it ran in a half-precision type"
)


def lengths(network: Network, tokens: Tensor) -> Tensor:
    """Number of tokens up to the first EOS, itself included; all T where there is none."""
    ended = network.is_eos(tokens).cumsum(-1) > 0
    return tokens.shape[-1] - ended.sum(-1) + ended.any(-1)


def micro_batches(
    network: Network,
    prompts: Sequence[Sequence[int]],
    index: Tensor,
    tokens: Tensor,
    token_budget: int | None = None,
    *,
    beside: Network | None = None,
) -> Iterator[Tensor]:
    """Row numbers of each forward pass: sorted by width, at most ``token_budget`` tokens.

    A row wider than the budget is a batch of its own. ``beside`` is another network that reads
    the same passes.
    """
    budget = network.token_budget if token_budget is None else token_budget
    if budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {budget}")
    for rows, widths in _apart(network, prompts, index, tokens, beside):
        batch: list[int] = []
        for row, width in zip(rows.tolist(), widths.tolist(), strict=True):
            # Sorted: the newest row is the widest.
            if batch and (len(batch) + 1) * width > budget:
                yield torch.tensor(batch, device=index.device)
                batch = []
            batch.append(row)
        if batch:
            yield torch.tensor(batch, device=index.device)


def _apart(
    network: Network,
    prompts: Sequence[Sequence[int]],
    index: Tensor,
    tokens: Tensor,
    beside: Network | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that may share a pass, sorted by width, and their widths.

    Rows on two sides of a switch of a network never do, and rows of unequal width only where
    it bears padding.
    """
    sizes = torch.tensor([len(p) for p in prompts], device=index.device)[index].cpu()
    widths = sizes + lengths(network, tokens).cpu() - 1
    order = torch.argsort(widths, stable=True)
    parts = [order]
    for reader in (network, beside):
        if reader is None:
            continue
        split: list[Tensor] = []
        for rows, handling in by_side(reader, sizes, tokens.shape[-1]):
            for part in parts:
                kept = part[torch.isin(part, rows)]
                apart = widths[kept].unique() if not handling.mixed else [None]
                split += [kept if w is None else kept[widths[kept] == w] for w in apart]
        parts = [part for part in split if len(part)]
    for part in parts:
        yield part, widths[part]


def log_prob_per_token(
    network: Network, prompts: Sequence[Sequence[int]], index: Tensor, tokens: Tensor
) -> Tensor:
    """Log-probability of each token of the rows; 0 after the first EOS.

    In one forward pass, where the network bears rows of unequal length.

    Parameters
    ----------
    network : Network
        The model.
    prompts : sequence of token-id sequences
        The contexts.
    index : int tensor (rows,)
        Which prompt each row continues.
    tokens : int tensor (rows, T)
        The continuations.

    Returns
    -------
    float tensor (rows, T)
        Nats; differentiable with respect to the parameters that require a gradient.

    Raises
    ------
    FloatingPointError
        If one is NaN.
    """
    parts = [rows.to(index.device) for rows, _ in _apart(network, prompts, index, tokens)]
    if len(parts) > 1:
        found = [log_prob_per_token(network, prompts, index[rows], tokens[rows]) for rows in parts]
        return torch.cat(found)[torch.argsort(torch.cat(parts)).to(found[0].device)]
    logits, ids, where, used = predictions(network, prompts, index, tokens)
    scores = _SelectedLogProb.apply(logits, ids).gather(1, where)
    scores = torch.where(used, scores, 0.0).to(network.dtype)
    if bool(scores.isnan().any()):
        raise FloatingPointError(NOT_FINITE.format("scoring"))
    return scores


def predictions(
    network: Network, prompts: Sequence[Sequence[int]], index: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of one forward pass over the rows, and where each token of a row is predicted.

    Parameters
    ----------
    network, prompts, index, tokens
        As for `log_prob_per_token`; rows of one of the `micro_batches`.

    Returns
    -------
    logits : tensor (rows, columns, vocabulary)
    ids : int tensor (rows, columns)
        The token that each column predicts.
    where : int tensor (rows, T)
        The column that predicts token t.
    used : bool tensor (rows, T)
        Whether token t belongs to the outcome.
    """
    device = network.device
    index, tokens = index.to(device), tokens.to(device)
    used = lengths(network, tokens)
    padded, sizes = _pad_right(prompts, device)
    padded, sizes = padded[index], sizes[index]
    # Column s holds prompt[s] before the prompt's end, then the completion, then zeros.
    width = int((sizes + used).max())
    column = torch.arange(width, device=device).expand(len(index), -1)
    last = max(padded.shape[1] - 1, 0)
    from_prompt = padded.gather(1, column.clamp(max=last))
    offset = (column - sizes[:, None]).clamp(min=0, max=tokens.shape[1] - 1)
    ids = torch.where(column < sizes[:, None], from_prompt, tokens.gather(1, offset))
    ids = torch.where(column < (sizes + used)[:, None], ids, 0)

    inputs, positions = ids[:, :-1], column[:, :-1]
    first = int(sizes.min()) - 1  # the earliest column that predicts a completion token
    with network.turn():
        ((_, handling),) = by_side(network, sizes.cpu(), tokens.shape[1])
        given = positions if handling.positions or network.needs_positions else None
        # Rows of one length have nothing to mask.
        mask = (positions < (sizes + used - 1)[:, None]).long() if handling.mixed else None
        logits, _ = network(inputs, mask, given, keep=width - 1 - first)
    network.counts["scored_rows"] += len(index)
    network.counts["grad_rows"] += len(index) if logits.requires_grad else 0
    step = torch.arange(tokens.shape[1], device=device).expand(len(index), -1)
    where = (sizes[:, None] - 1 - first + step).clamp(max=logits.shape[1] - 1)
    return logits, ids[:, first + 1 :], where, step < used[:, None]


class _SelectedLogProb(torch.autograd.Function):
    """``logits[target] - logsumexp(logits)``; its gradient takes one buffer of their size.

    `torch.nn.functional.cross_entropy` keeps the log-softmax besides, and its float32 sums over
    a large vocabulary are 4 times less accurate; the plain expression's backward pass is twice
    as slow and needs three buffers.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        log_z = logits.logsumexp(-1)
        ctx.save_for_backward(logits, target, log_z)
        return logits.gather(-1, target[..., None])[..., 0] - log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, target, log_z = ctx.saved_tensors
        out = (logits - log_z[..., None]).exp_().mul_(-grad[..., None])
        return out.scatter_add_(-1, target[..., None], grad[..., None]), None


def _pad_right(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (prompts, widest) and lengths (prompts,)."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([list(p) + [0] * (width - len(p)) for p in prompts], device=device)
    return ids, torch.tensor([len(p) for p in prompts], device=device)
