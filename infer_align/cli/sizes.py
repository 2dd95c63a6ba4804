"""What cannot fit is refused with its size, instead of running for minutes until it fails."""

import math
import os

from infer_align.cli.errors import Stop

BYTES = 24
"""Of a token: its id, its log-probability under two laws, at least."""


def memory() -> float:
    """Bytes of this machine's memory; inf where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def check_size(flag: str, n: int, contexts: int = 1, tokens: int = 1) -> None:
    """Refuse more outcomes than the machine's memory can hold.

    Parameters
    ----------
    flag : str
        The option that says how many.
    n : int
        Outcomes in each context.
    contexts : int
    tokens : int
        Longest outcome.

    Raises
    ------
    Stop
        With the size, and what to lower.
    """
    needed, there = float(BYTES) * n * contexts * tokens, memory()
    if needed <= there:
        return
    prompts = "" if contexts == 1 else f" for each of {contexts:,} prompts"
    length = "" if tokens == 1 else f", of up to {tokens:,} tokens each,"
    raise Stop(
        f"{flag} {n:,}: so many outcomes{prompts}{length} take at least {needed / 2**30:,.0f} GiB, "
        f"and this machine has {there / 2**30:,.0f}; lower {flag}"
        + (", or --max-new-tokens" if tokens > 1 else "")
    )
