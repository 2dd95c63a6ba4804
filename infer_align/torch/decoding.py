"""Sequences that grow by a token a pass, as rows of one batch.

Each distinct prompt is read once and its state copied to its rows. Prompts of unequal length are
padded on the left, with explicit positions, so that a row's tokens stay contiguous (a sliding
window counts columns). A network whose cache cannot be trusted reads each sequence whole at every
token instead.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Decoder:
    """Rows that continue prompts; `logits` are those of each row's next token.

    Parameters
    ----------
    network : Network
    prompts : sequence of token-id sequences
        Each is read once. Of one length, unless the network bears padding.
    rows : int tensor (rows,)
        Which prompt each row continues.
    handling : Handling
        How the network is run.
    """

    def __init__(self, network: Any, prompts: Sequence[Sequence[int]], rows: Tensor, handling: Any):
        self._network, self._handling = network, handling
        self._ids, self._mask = pad_left(prompts, network.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None
        self.logits = self._forward(self._ids, self._positions)
        self.keep(rows)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; one may appear several times."""
        if torch.equal(rows.cpu(), torch.arange(len(self._mask))):
            return
        rows = rows.to(self._mask.device)
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        self._positions, self.logits = self._positions[rows], self.logits[rows]
        if self._handling.cached:
            self._cache.reorder_cache(rows)

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; logits of the next, (rows, V)."""
        token = tokens[:, None]
        self._ids = torch.cat([self._ids, token], dim=-1)
        self._mask = torch.cat([self._mask, torch.ones_like(token)], dim=-1)
        self._positions = torch.cat([self._positions, self._positions[:, -1:] + 1], dim=-1)
        if self._handling.cached:
            self.logits = self._forward(token, self._positions[:, -1:])
        else:
            self.logits = self._forward(self._ids, self._positions)
        return self.logits

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        handling = self._handling
        # Without padding there is nothing to mask; recurrent layers would mask a step by all.
        mask = self._mask if handling.padded else None
        given = positions if handling.positions or self._network.needs_positions else None
        logits, self._cache = self._network(
            ids, mask, given, 1, self._cache, use_cache=handling.cached
        )
        return logits[:, -1]


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts that end at the same column."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
