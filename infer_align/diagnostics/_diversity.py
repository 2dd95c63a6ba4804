"""Diversity of token sequences: distinct n-grams, and BLEU of each against the others."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from infer_align._arguments import count, entries


def distinct_n(sequences: Sequence[Sequence[Hashable]], size: int = 1) -> float:
    r"""Share of the n-grams of some sequences that differ from each other.

    .. math:: \text{distinct-}n = \frac{|\{\text{n-grams}\}|}{\#\text{n-grams}}

    Li, Galley, Brockett, Gao, Dolan 2016 (arXiv 1510.03055). It falls with the number of sequences
    and with their length: compare equal numbers of them.

    Parameters
    ----------
    sequences : sequence of token sequences
        Tokens (ids or words) of one outcome each, its end and padding left out.
    size : int
        n of the n-grams.

    Returns
    -------
    float
        From just above 0 to 1; NaN where no sequence has ``size`` tokens.

    Raises
    ------
    ValueError
        If ``size`` is below 1.

    Examples
    --------
    >>> from infer_align.diagnostics import distinct_n
    >>> distinct_n([[1, 2, 1], [1, 2]], 1), round(distinct_n([[1, 2, 1], [1, 2]], 2), 4)
    (0.4, 0.6667)
    """
    size = count("size, the tokens of an n-gram,", size)
    grams = [tuple(s[i : i + size]) for s in _listed(sequences) for i in range(len(s) - size + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(
    sequences: Sequence[Sequence[Hashable]], *, max_sequences: int = 64, seed: int = 0
) -> float:
    r"""Mean BLEU-4 of each sequence against all others: 1 where they repeat one another.

    .. math:: \frac1m \sum_i \mathrm{BLEU}(y_i; \{y_j\}_{j \ne i})

    Zhu, Lu, Zheng, Guo, Zhang, Wang, Yu 2018 (arXiv 1802.01886), with sacreBLEU's sentence score
    (tokens as they are, exponential smoothing, sequences below four tokens by the n-grams that they
    have). It rises with m and falls with the length: compare equal numbers.

    Parameters
    ----------
    sequences : sequence of token sequences
        As for `distinct_n`; empty ones are left out.
    max_sequences : int
        m: of more sequences than these, a random subset is taken, since the cost is quadratic.
    seed : int
        Of the subset.

    Returns
    -------
    float
        Between 0 and 1; NaN for fewer than 2 sequences.

    Raises
    ------
    ModuleNotFoundError
        If ``sacrebleu`` is not installed.

    Examples
    --------
    >>> from infer_align.diagnostics import self_bleu
    >>> round(self_bleu([[1, 2, 3, 4]] * 2), 6), round(self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]), 6)
    (1.0, 0.0)
    """
    max_sequences = count("max_sequences", max_sequences, low=2)
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "self_bleu needs sacrebleu, which is not installed: pip install sacrebleu",
            name="sacrebleu",
        ) from error
    kept = [s for s in _listed(sequences) if len(s)]
    if len(kept) > max_sequences:
        chosen = np.random.default_rng(seed).choice(len(kept), max_sequences, replace=False)
        kept = [kept[i] for i in sorted(chosen)]
    if len(kept) < 2:
        return math.nan
    ids: dict[Hashable, str] = {}
    texts = [" ".join(ids.setdefault(t, str(len(ids))) for t in s) for s in kept]
    bleu = BLEU(effective_order=True, tokenize="none")
    scores = [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)
    ]
    return float(np.mean(scores)) / 100


def _listed(sequences: Any) -> list[Any]:
    """Sequences of tokens; a text of one is a list of letters, and refused."""
    out = entries("sequences", sequences, of="sequences of tokens")
    if bad := [s for s in out if not hasattr(s, "__len__")]:
        raise TypeError(
            f"each of sequences must be a sequence of tokens, got {bad[0]!r} "
            f"({type(bad[0]).__name__})"
        )
    return out
