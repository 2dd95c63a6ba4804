r"""Exact answers: the oracle of every test, and reward/KL trade-offs without sampling error.

Where the outcomes can be listed, everything is a sum over a `Space`. Larger outcome sets are solved
through what they are made of. `solve` reads it off a declared target. A `RewardLaw` (from
`reward_law` for independent letters, or a `Chain`) lists the levels of a reward; policies that
reweight the prior by the reward are vectors over them:

- `infer_align.exact.tilts`: tilts by temperature, KL budget or reward; the frontier
- `infer_align.exact.selection`: best-of-n and its relatives
- `infer_align.exact.regularized`: optima under any f-divergence
- `infer_align.exact.asymptotics`: rate functions, cumulants, Rényi cross entropies
- `infer_align.exact.calibrated`: best-of-n and relatives where rewards never tie
- `infer_align.exact.overoptimization`: gold rewards along policies that chase a proxy
- `infer_align.exact.chains`: Markov models, hidden Markov models, automata
- `infer_align.exact.reports`: everything about a memoryless model or a target, as plain data

Everything that is listed is exact but for rounding; a law that is not says so (``law.exact``), with
a bound (``law.error``).
"""

from infer_align.exact import (
    asymptotics,
    calibrated,
    chains,
    overoptimization,
    regularized,
    reports,
    selection,
    tilts,
)
from infer_align.exact._build import reward_law, reward_law_of_counts
from infer_align.exact._cdf import reward_cdf
from infer_align.exact._games import Equilibrium, best_response, duality_gap, nash
from infer_align.exact._law import RewardLaw
from infer_align.exact._lookahead import Lookahead, lookahead
from infer_align.exact._moments import kl_budget, match_moments
from infer_align.exact._potential import potential_law
from infer_align.exact._rewards import log_rewards, regularized_rewards
from infer_align.exact._solve import (
    Answer,
    by_letters,
    by_messages,
    by_sequences,
    by_types,
    solve,
)
from infer_align.exact.chains import Automaton, Chain
from infer_align.exact.selection import best_of_n

__all__ = [
    "Answer",
    "Automaton",
    "Chain",
    "Equilibrium",
    "Lookahead",
    "RewardLaw",
    "asymptotics",
    "best_of_n",
    "best_response",
    "by_letters",
    "by_messages",
    "by_sequences",
    "by_types",
    "calibrated",
    "chains",
    "duality_gap",
    "kl_budget",
    "log_rewards",
    "lookahead",
    "match_moments",
    "nash",
    "overoptimization",
    "potential_law",
    "regularized",
    "regularized_rewards",
    "reports",
    "reward_cdf",
    "reward_law",
    "reward_law_of_counts",
    "selection",
    "solve",
    "tilts",
]
