"""How a network is run so that a row's numbers are its own: checked once, not assumed.

A row should have the same law alone, beside a longer row, after other rows left the batch, and
token by token through a key-value cache. Some networks ignore position ids, let padding into a
recurrent state, or have no cache that can follow its rows. The first pass of a network therefore
compares these ways on two short rows, at most five short passes where all is well, and takes the
fastest way that gives a row its own numbers. What none of them does is refused by name.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infer_align._threads import alone
from infer_align.torch.decoding import Decoder

NEW = 2
"""Tokens that the check decodes one by one."""

LIMITS = {torch.float64: 1e-5, torch.float32: 5e-4}
HALF_LIMIT = 0.25
"""Largest mean |difference| of two next-token laws, in nats, that counts as rounding."""
TELLING = 4
"""Laws of two prefixes that differ by fewer limits than this say nothing of the network."""


@dataclass(frozen=True)
class Handling:
    """What a network bears.

    Attributes
    ----------
    positions : bool
        It is given position ids.
    mixed : bool
        Rows of unequal width may be scored in one pass, padded on the right.
    padded : bool
        Prompts of unequal length may be decoded in one pass, padded on the left.
    cached : bool
        It goes on from its key-value cache; otherwise sequences are read whole at every token.
    """

    positions: bool = True
    mixed: bool = True
    padded: bool = True
    cached: bool = True


def both(one: Handling, other: Handling) -> Handling:
    """What both bear; where one counts positions by itself, rows of one length only."""
    alike = one.positions == other.positions
    return Handling(
        one.positions and other.positions,
        alike and one.mixed and other.mixed,
        alike and one.padded and other.padded,
        one.cached and other.cached,
    )


CAREFUL = Handling(positions=False, mixed=False, padded=False, cached=False)
"""Rows of one length, read whole: where a check has no room."""

_known: dict[tuple, Handling] = {}


def by_side(network: Any, lengths: Tensor, new: int) -> list[tuple[Tensor, Handling]]:
    """Row numbers on each side of the network's switches, and how to run them.

    Parameters
    ----------
    network : Network
    lengths : int tensor (rows,)
        Tokens of each row's prompt.
    new : int
        Largest number of new tokens.

    Raises
    ------
    ValueError
        If a row crosses a switch.
    """
    sides: dict[Any, list[int]] = {}
    for size in lengths.unique().tolist():
        sides.setdefault(network.side(size, new), []).append(size)
    found = []
    for side, sizes in sides.items():
        rows = torch.isin(lengths, torch.tensor(sizes, device=lengths.device)).nonzero()[:, 0]
        found.append((rows, network.handling(side, max(sizes) + new - 1)))
    return found


def handling(network: Any, side: int, read: int) -> Handling:
    """How to run rows on one side of a network's switches that read up to ``read`` tokens.

    Parameters
    ----------
    network : Network
    side : int
        See `LengthRules.side`.
    read : int
        The longest row's prompt and new tokens, but for the last.

    Raises
    ------
    ValueError
        If no way of running the network gives each row its own numbers.
    """
    shared = network.shared
    low, high = shared.rules.around(side)
    limit = network.context_length
    high = min(x for x in (high, limit, 10**9) if x is not None)
    # A short check sees no window or chunk that it does not pass: look again beyond each.
    marks = tuple(m for m in shared.rules.marks if low < m < read)
    here = (low, marks, shared.module.dtype, network.device.type)
    found = shared.handlings.get(here)
    if found is None:
        key = (*here, high, *_identity(shared.module))
        found, telling = _known.get(key), True
        if found is None:
            found, telling = _checked(network, (0, *marks), low, high)
        if telling:
            _known[key] = shared.handlings[here] = found
    return found


def _checked(network: Any, marks: tuple[int, ...], low: int, high: int) -> tuple[Handling, bool]:
    """The handling that bears every mark, and whether the checks could tell."""
    found, told = Handling(), True
    for mark in marks:
        pairs = list(_pairs(mark, low, high))
        if not pairs:
            return CAREFUL, True
        for short, long in pairs:
            with _unseen(network), torch.no_grad():
                found, telling = _Check(network, *_rows(network, short, long)).run(found)
            told = told and telling
    return found, told


@contextmanager
def _unseen(network: Any) -> Iterator[None]:
    """Leave counts and generators as they were."""
    counts = dict(network.counts)
    devices = [network.device] if network.device.type == "cuda" else []
    try:
        with alone(), torch.random.fork_rng(devices=devices):
            network.activate()
            yield
    finally:
        network.counts.clear()
        network.counts.update(counts)


def _pairs(mark: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Lengths of a short row and a longer one: beyond a mark, and then apart by more than it."""
    longest = min(high, max(mark, low) + 7 if low >= mark else mark + 4)
    gap = min(3, longest - NEW - low - 1)
    if gap < 1:
        return
    yield longest - gap, longest
    # In a window that holds nothing but padding some networks take a softmax of nothing: NaN.
    short = low + NEW + 2
    if mark and short + mark + 1 <= high:
        yield short, short + mark + 1


def _rows(network: Any, short: int, long: int) -> tuple[list[int], list[int]]:
    """Token ids of two rows."""
    config = network.shared.module.config.get_text_config()
    special = getattr(config, "pad_token_id", None)
    size = network.vocab_size
    first = [(7 * i * i + i + 2) % size for i in range(short)]
    if isinstance(special, int) and 0 <= special < size:
        first[0] = special  # some networks take a pad token in a row for padding
    return first, [(5 * i * i + 3 * i + 1) % size for i in range(long)]


class _Check:
    """The passes of one check; see the module."""

    def __init__(self, network: Any, short: list[int], long: list[int]):
        self.network, self.short, self.long = network, short, long
        dtype = network.shared.module.dtype
        self.limit = LIMITS.get(dtype, HALF_LIMIT)
        self.seen: list[str] = []

    def run(self, start: Handling) -> tuple[Handling, bool]:
        """The handling, and whether the laws differ enough between prefixes to tell."""
        own = self.laws([self.short], positions=False)[0]
        if start.mixed and not _finite(own):
            # ProphetNet in float64 bears no mask at all, not one that hides nothing either.
            start = replace(start, mixed=False, padded=False)
            own = self.laws([self.short], positions=False, masked=False)[0]
        if not _finite(own):
            return start, False  # the pass itself will say so
        found = self._scored(start, own)
        # A half-precision check could take a learnt position for rounding.
        trusted = found.positions or self.network.shared.module.dtype in LIMITS
        ways = [(True, True)] * trusted + [(False, True), (False, False)]
        for padded, cached in ways:
            if padded <= start.padded and cached <= start.cached:
                way = replace(found, padded=padded, cached=cached)
                if self.tried(self._decoded, own, way) <= self.limit:
                    return way, _gap(own[-1:], own[-2:-1]) > TELLING * self.limit
        raise self.refusal("token by token")

    def _scored(self, start: Handling, own: Tensor) -> Handling:
        """How rows are scored beside each other."""
        takes = self.network.takes_positions and start.positions
        ways = [
            replace(start, positions=positions, mixed=mixed)
            for positions, mixed in ((True, True), (False, True), (False, False))
            if positions <= takes and mixed <= start.mixed
        ]
        for way in ways:
            if self.tried(self._beside, own, way) <= self.limit:
                return way
        raise self.refusal("beside another row")

    def laws(self, rows: list[list[int]], *, positions: bool, masked: bool = True) -> Tensor:
        """Next-token laws of the last columns of the short row, (rows, columns, V)."""
        width = max(len(r) for r in rows)
        device = self.network.device
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=device)
        column = torch.arange(width, device=device).expand(len(rows), -1)
        ends = torch.tensor([len(r) for r in rows], device=device)
        mask = (column < ends[:, None]).long()
        first = len(self.short) - NEW - 1
        given = column if positions or self.network.needs_positions else None
        keep = width - first
        logits, _ = self.network(ids, mask if masked else None, given, keep, only=NEW + 1)
        return logits.double().log_softmax(-1)

    def _beside(self, own: Tensor, way: Handling) -> float:
        """The short row whole, beside a longer one or one of its length."""
        other = self.long if way.mixed else self.short[::-1]
        rows = [self.short, other]
        return _gap(own, self.laws(rows, positions=way.positions, masked=way.mixed)[0])

    def _decoded(self, own: Tensor, way: Handling) -> float:
        """The short row token by token: among others, then alone."""
        tokens = torch.tensor([self.short[-NEW:], self.long[-NEW:]], device=self.network.device)
        other = self.long if way.padded else self.short[::-1]
        prompts = [self.short[:-NEW], other[:-NEW]]
        decoder = Decoder(self.network, prompts, torch.tensor([1, 0, 0]), way)
        laws = [decoder.logits[1]]
        laws.append(decoder.advance(tokens[[1, 0, 0], 0])[1])
        decoder.keep(torch.tensor([2]))
        laws.append(decoder.advance(tokens[:1, 1])[0])
        return _gap(own, torch.stack(laws).double().log_softmax(-1))

    def tried(self, what: Callable[..., float], own: Tensor, way: Handling) -> float:
        """The gap that a way leaves; infinite, with its reason, where the network refuses it."""
        try:
            gap = what(own, way)
        except Exception as error:  # whatever the network raises, this way is out
            self.seen.append(f"{type(error).__name__}: {error}")
            return float("inf")
        self.seen.append(f"{gap:.2g} nats a token")
        return gap

    def refusal(self, how: str) -> ValueError:
        module = self.network.shared.module
        return ValueError(
            f"{type(module).__name__} in {module.dtype} gives a row other numbers {how} than alone "
            f"({self.seen[-1]}, limit {self.limit:g}): its draws would not be from the law that "
            "scores them. It may not be causal, or round too coarsely (dtype=torch.float32); "
            "otherwise take a model of another class"
        )


def _finite(law: Tensor) -> bool:
    return bool(law.exp().sum(-1).isfinite().all())


def _gap(law: Tensor, other: Tensor) -> float:
    """Largest mean of |log p − log q| under p over the columns, in nats; infinite for NaN."""
    p = law.exp()
    gap = torch.where(p > 0, p * (law - other).abs(), 0.0).sum(-1).max()
    return float(gap.nan_to_num(nan=float("inf"), posinf=float("inf")))


def _identity(module: Any) -> tuple:
    """What the way a network is run may depend on: not its weights."""
    config = json.dumps(module.config.to_dict(), default=str, sort_keys=True)
    attention = getattr(module.config, "_attn_implementation", None)
    forward = getattr(module.forward, "__func__", module.forward)
    return type(module), forward, config, attention
