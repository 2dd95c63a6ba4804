"""A number that a paper claims, beside the one that comes out."""

from typing import NamedTuple


class Check(NamedTuple):
    """One number: what it should be, what it is, and how far apart they may be."""

    claim: str
    what: str
    expected: float
    got: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the two agree; NaN never does."""
        return abs(self.got - self.expected) <= self.tolerance
