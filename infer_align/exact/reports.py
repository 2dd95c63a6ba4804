r"""Everything about a memoryless model, as plain data: what the command line prints and draws.

Per token, with δ the KL budget and n = exp(mδ) draws for best-of-n. ``beta`` is the temperature.
Ends of the range are ordinary: δ = 0 is the prior (beta inf); δ at or beyond −log p(best letters)
is the prior on these (beta 0), where best-of-n, which still has mass elsewhere, is at infinite KL.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import entries
from infer_align.divergences import reverse_kl, total_variation
from infer_align.exact._build import reward_law, whole_length
from infer_align.exact._law import RewardLaw
from infer_align.exact._letters import merged_letters
from infer_align.exact._potential import Letters, additive_letters, potential_law
from infer_align.exact._problem import distribution_of, problem_of
from infer_align.exact._rewards import ExactRewards, exact_rewards, fraction
from infer_align.exact._solve import solve
from infer_align.exact.asymptotics import rate, rate_of_best_of_n, renyi_cross_entropy
from infer_align.exact.selection import best_of_n, kl_bound, log_kl_to_best_of_n
from infer_align.exact.tilts import beta_for_kl, frontier, small_kl_expansion
from infer_align.programs import as_target
from infer_align.spaces.sequences import listed_support
from infer_align.targets import Target

__all__ = [
    "Model",
    "best_of_n_row",
    "declared",
    "frontier_rows",
    "memoryless",
    "model",
    "rate_rows",
    "renyi_rows",
    "tilt_rows",
]

ORDERS = (*np.arange(0.0, 2.0, 0.25), 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, math.inf)
"""Of the Rényi cross entropies."""
POINTS = 41
"""Of each curve."""


class Model(NamedTuple):
    """A memoryless model with an additive reward."""

    probs: np.ndarray
    """Letter probabilities, normalised."""
    rewards: ExactRewards
    """As written."""
    letter: RewardLaw
    """The law of one letter's reward."""

    @property
    def values(self) -> np.ndarray:
        """The rewards as floats."""
        return self.rewards.values()


def model(probs: Sequence[Any], rewards: Any) -> Model:
    """A memoryless model, checked.

    Parameters
    ----------
    probs : sequence of k numbers or texts
    rewards : sequence of k numbers or texts, or ExactRewards
        Ties are decided as written.

    Raises
    ------
    ValueError
        As `reward_law`.
    """
    given = [float(fraction(p, f"probability {j}")) for j, p in enumerate(entries("probs", probs))]
    exact = exact_rewards(rewards)
    letters = merged_letters(given, exact)
    return Model(np.asarray(letters.probs), exact, reward_law(given, exact))


def memoryless(
    probs: Sequence[Any], rewards: Any, lengths: Sequence[Any], kls: Sequence[Any], *,
    whole_n: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Tilts, frontier, rate functions, Rényi cross entropies and best-of-n of a memoryless model.

    Parameters
    ----------
    probs, rewards : sequence of k numbers or texts
        As written: ``"0.1"`` is a tenth.
    lengths : sequence of int or texts
        Numbers of tokens m.
    kls : sequence of numbers or texts
        Budgets δ in nats per token, >= 0.
    whole_n : bool
        Best of the whole number below exp(mδ), at least 1, instead of the real one.

    Returns
    -------
    dict
        Sections ``model``, ``tilt``, ``frontier``, ``rate_function``, ``renyi_cross_entropy`` and
        ``bon``, of plain numbers, lists and dicts.

    Raises
    ------
    ValueError
        For bad input, with what to do; for a length that no engine reaches with an error bound.

    Examples
    --------
    >>> from infer_align.exact import reports
    >>> report = reports.memoryless(["0.5", "0.3", "0.2"], ["0", "1", "2"], [10], ["0.2"])
    >>> sorted(report)
    ['bon', 'frontier', 'model', 'rate_function', 'renyi_cross_entropy', 'tilt']
    >>> round(report["bon"][0]["reward_bon"], 6)
    1.04837
    """
    m = model(probs, rewards)
    lengths = [whole_length(length) for length in entries("lengths", lengths)]
    budgets = [_budget(kl) for kl in entries("kls", kls)]
    laws = {length: reward_law(m.probs, m.rewards, length) for length in lengths}
    _, mean, variance, third = m.letter.cumulants(0.0)
    return {
        "model": {
            "probs": m.probs.tolist(), "rewards": m.values.tolist(), "mean": float(mean),
            "variance": float(variance), "third_cumulant": float(third),
            "reward_max": m.letter.reward_range[1], "kl_max": m.letter.kl_max,
        },
        "tilt": tilt_rows(m, [float(d) for d in budgets]),
        "frontier": frontier_rows(m.letter, [float(d) for d in budgets]),
        "rate_function": rate_rows(m, [float(d) for d in budgets]),
        "renyi_cross_entropy": renyi_rows(m, [float(d) for d in budgets]),
        "bon": [
            best_of_n_row(m, laws[length], kl, whole_n=whole_n)
            for length in lengths
            for kl in budgets
        ],
    }  # fmt: skip


def declared(
    target: Any, *contexts: Any, scale: float | int = 1.0, kls: Sequence[Any] = (),
    draws: Sequence[float | int] = (1, 2, 4, 8, 16, 32, 64, 128),
) -> dict[str, Any]:  # fmt: skip
    """The exact answer to a declared target, its frontier, and best-of-n on its reward.

    Parameters
    ----------
    target : Target, or Pyro or NumPyro program
    *contexts : Any
        What it is conditioned on: a single context.
    scale : float
        beta, where the log-potential is reward/beta; rewards are reported in its units.
    kls : sequence of numbers or texts
        KL budgets in nats per token, for a memoryless target. Default: five up to half of the most
        that buys reward.
    draws : sequence of float
        n of best-of-n.

    Returns
    -------
    dict
        Sections ``answer``; ``frontier`` and ``draws`` in totals over the sequence, where the law
        of the reward is known (beside the prior given what is not rejected); and those of
        `memoryless`, where tokens are independent and rewards additive, for sequences of
        1, 2, 4, ... tokens up to the target's length.

    Raises
    ------
    ValueError
        If the target has no exact solution; for ``kls`` beside a target that is not memoryless.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from infer_align.exact import reports
    >>> def program():
    ...     y = numpyro.sample("y", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    ...     numpyro.factor("reward", 1.0 * y)
    >>> report = reports.declared(program)
    >>> sorted(report), report["answer"]["engine"]
    (['answer', 'draws', 'frontier'], 'sequences')
    """
    target = as_target(target, *contexts)
    answer = solve(target, *contexts)
    report: dict[str, Any] = {
        "answer": {
            "log_z": float(answer.log_z),
            "entropy": None if answer.entropy is None else float(answer.entropy),
            "expected_reward": scale * float(answer.expected_log_potential),
            "expected_log_potential": float(answer.expected_log_potential),
            "kl_to_prior": float(answer.kl_to_prior), "beta": float(scale),
            "engine": answer.engine, "reason": answer.reason,
        }
    }  # fmt: skip
    try:
        law = potential_law(target, *contexts, scale=scale)
    except ValueError as reason:
        report["answer"]["frontier"] = f"none: {reason}"
        return report
    if len(law) == 1:
        report["answer"]["frontier"] = "none: the reward takes a single value where it is finite"
        return report
    report["frontier"] = frontier_rows(law)
    report["draws"] = [_draws_row(law, n) for n in draws]
    letters = _letters_of(target, contexts, scale)
    if letters is not None:
        lengths = [2**i for i in range(letters.length.bit_length())]
        lengths = sorted({*(x for x in lengths if x < letters.length), letters.length})
        most = reward_law(letters.probs, letters.rewards).kl_max / 2
        kls = kls or [f"{most * x:.3g}" for x in (0.05, 0.2, 0.4, 0.7, 1.0)]
        per_token = memoryless(letters.probs, letters.rewards, lengths, kls)
        report["per_token_frontier"] = per_token.pop("frontier")
        report |= per_token
    elif kls:
        raise ValueError(
            "KL budgets per token need independent tokens with additive rewards, and target "
            f"{target.name!r} has none; leave them out (its frontier is in totals)"
        )
    return report


def _letters_of(target: Target, contexts: tuple[Any, ...], scale: float | int) -> Letters | None:
    """Letters of a memoryless target of several tokens, or None."""
    if listed_support(distribution_of(target, contexts)) is not None:
        return None
    letters = additive_letters(problem_of(target, contexts), scale=scale)
    return letters if letters is not None and letters.length > 1 else None


def _draws_row(law: RewardLaw, n: float | int) -> dict[str, float]:
    """Best-of-n beside the tilt of the same KL; totals over the sequence."""
    bon = best_of_n(law, n)
    kl = max(float(law.kl_to_prior(bon)), 0.0) if n != 1 else 0.0  # of rounding, not of one draw
    beta = float(beta_for_kl(law, kl))
    tilt = law.tilt(beta)
    return {
        "n": float(n), "reward_bon": float(law.expected_reward(bon)),
        "reward_tilt": float(law.expected_reward(tilt)), "kl": kl, "kl_bound": float(kl_bound(n)),
        "beta": beta, "kl_bon_tilt": _kl_to_tilt(law, bon, tilt, beta),
        "tv": float(law.divergence(total_variation, bon, tilt)),
        "win_rate": float(law.win_rate(bon)),
    }  # fmt: skip


def _key(kl: float) -> str:
    """A budget as written, which six digits may not tell from another."""
    return f"{kl!r}".removesuffix(".0")


def _budget(kl: Any) -> Fraction:
    budget = fraction(kl, "the KL budget delta")
    if budget < 0:
        raise ValueError(f"the KL budget delta is a number of nats >= 0, got {kl}")
    return budget


def tilt_rows(m: Model, kls: Sequence[float]) -> list[dict[str, Any]]:
    """The tilt of each budget: beta, log Z per token, reward, variance, letter probabilities.

    Parameters
    ----------
    m : Model
    kls : sequence of float
    """
    return [_tilt_row(m, kl) for kl in kls]


def _tilt_row(m: Model, kl: float) -> dict[str, Any]:
    beta = beta_for_kl(m.letter, kl)
    mass = m.letter.tilt(beta)
    log_z = 0.0 if math.isinf(beta) else math.inf if beta == 0 else float(m.letter.log_z(beta))
    return {
        "delta": kl, "beta": float(beta), "log_z": log_z,
        "kl": float(m.letter.kl_to_prior(mass)), "reward": float(m.letter.expected_reward(mass)),
        "variance": float(frontier(m.letter, kl).variance),
        "probs": m.letter.token_marginals(mass, len(m.probs)).tolist(),
    }  # fmt: skip


def frontier_rows(law: RewardLaw, kls: Sequence[float] = ()) -> list[dict[str, Any]]:
    """Points of the frontier, denser near the prior, with its slope, curvature and expansion.

    Parameters
    ----------
    law : RewardLaw
        Of one letter, or of a sequence.
    kls : sequence of float
        Further budgets.
    """
    grid = law.kl_max * np.linspace(0, 1, POINTS) ** 2
    rows = []
    for kl in sorted({*grid.tolist(), *kls}):
        point = frontier(law, kl)
        rows.append(
            {
                "kl": kl, "beta": float(point.beta), "reward": float(point.reward),
                "variance": float(point.variance), "slope": float(point.beta),
                "curvature": float(point.curvature),
                "small_kl_expansion": float(small_kl_expansion(law, kl)) if len(law) > 1 else
                float(point.reward),
            }
        )  # fmt: skip
    return rows


def rate_rows(m: Model, kls: Sequence[float]) -> list[dict[str, Any]]:
    """Rate functions of prior, tilt and best-of-n over the range of rewards.

    Parameters
    ----------
    m : Model
    kls : sequence of float
        Budgets of the tilts and of best-of-n.
    """
    low, high = m.letter.reward_range
    points = {kl: frontier(m.letter, kl) for kl in kls}
    # Denser towards the ends, where rates bend; rounding must not leave the range.
    inner = low + (high - low) * np.sin(np.linspace(0, math.pi / 2, 2 * POINTS - 1)) ** 2
    grid = {low, high, *inner[1:-1].tolist(), *(float(p.reward) for p in points.values())}
    return [
        {
            "reward": x,
            "prior": rate(m.letter, x),
            "tilt": {_key(kl): rate(m.letter, x, beta=float(p.beta)) for kl, p in points.items()},
            "best_of_n": {_key(kl): rate_of_best_of_n(m.letter, x, kl) for kl in kls},
        }
        for x in sorted(grid)
    ]


def renyi_rows(m: Model, kls: Sequence[float]) -> list[dict[str, Any]]:
    """Rényi cross entropies of the prior and of the tilts to q = softmax(rewards).

    With q so, r = log q + log Σ exp r, and the scaled cumulants of the reward are
    t·log Σ exp r − t·H_{1+t}(φ‖q) (Yang et al. 2024).

    Parameters
    ----------
    m : Model
    kls : sequence of float
    """
    log_q = m.values - np.logaddexp.reduce(m.values)
    with np.errstate(divide="ignore"):
        laws = {_key(row["delta"]): np.log(row["probs"]) for row in tilt_rows(m, kls)}
        log_p = np.log(m.probs)
    return [
        {
            "order": order,
            "prior": float(renyi_cross_entropy(log_p, log_q, order)),
            "tilt": {kl: float(renyi_cross_entropy(law, log_q, order)) for kl, law in laws.items()},
        }
        for order in ORDERS
    ]


def best_of_n_row(m: Model, law: RewardLaw, kl: Any, *, whole_n: bool = False) -> dict[str, Any]:
    """Best-of-n with n = exp(mδ) beside the tilt of the same budget.

    Parameters
    ----------
    m : Model
    law : RewardLaw
        Of its sequences of m tokens.
    kl : number or text
        δ per token, as written.
    whole_n : bool
        Best of the whole number below exp(mδ), at least 1.

    Returns
    -------
    dict
        ``m``, ``delta``, ``log_n``, ``beta``; ``reward_tilt``, ``reward_bon``, ``kl_bon_prior``,
        ``kl_bon_tilt`` and the bound ``kl_bound`` per token; ``tv``, ``win_rate`` and
        ``log_kl_tilt_bon``, the logarithm of the total KL(φ‖π_n), as they are; ``engine`` and
        ``exact``. If not exact, ``bounds`` holds an interval for each of the first numbers.

    Raises
    ------
    ValueError
        If the law has no bound of its error.
    """
    budget, length = _budget(kl), law.length
    if law.log_error:
        raise ValueError(
            f"best-of-n of {length} tokens has no error bound here: it would need {law.reason}; "
            "shorten m, or round the rewards to a coarser lattice"
        )
    delta, log_n = float(budget), float(budget * length)
    if whole_n:
        log_n = math.log(math.floor(math.exp(log_n))) if log_n < 36 else log_n
    beta = float(beta_for_kl(m.letter, delta))
    tilt, bon = law.tilt(beta), best_of_n(law, log_n=log_n)
    row = {
        "m": length, "delta": delta, "log_n": log_n, "beta": beta,
        "reward_tilt": float(m.letter.expected_reward(m.letter.tilt(beta))),
        "reward_bon": float(law.expected_reward(bon)) / length,
        "kl_bon_prior": float(law.kl_to_prior(bon)) / length,
        "kl_bon_tilt": _kl_to_tilt(law, bon, tilt, beta) / length,
        "tv": min(float(law.divergence(total_variation, bon, tilt)), 1.0),
        "win_rate": min(float(law.win_rate(bon)), _most(log_n)),
        "kl_bound": _kl_bound(log_n) / length,
        "log_kl_tilt_bon": log_kl_to_best_of_n(law, tilt, log_n=log_n),
        "engine": law.engine, "exact": law.exact,
    }  # fmt: skip
    return (
        row if law.exact else {**row, "error": law.error / length, "bounds": _bounds(m, law, row)}
    )


def _kl_to_tilt(law: RewardLaw, bon: Any, tilt: Any, beta: float) -> float:
    """KL(π_n‖φ); infinite beside the highest level alone, however little is elsewhere."""
    return math.inf if beta == 0 and len(law) > 1 else float(law.divergence(reverse_kl, bon, tilt))


def _kl_bound(log_n: float) -> float:
    """log n − (n − 1)/n, whatever the size of n."""
    return float(kl_bound(math.exp(log_n))) if log_n < 700 else log_n - 1


def _most(log_n: float) -> float:
    """n/(n + 1), the win rate without ties."""
    return 1 / (1 + math.exp(-log_n))


def _bounds(m: Model, law: RewardLaw, row: dict[str, Any]) -> dict[str, list[float]]:
    r"""Intervals for a law whose levels are off by at most ``law.error`` for any sequence.

    Reward: best-of-n moves by no more than the error. KL to the prior: between the least KL of its
    reward, m·I₀, and log n − 1 + 1/n. KL to the tilt: KL(π‖φ) = KL(π‖p) − E[r]/β + log Z. Win rate:
    a lead of twice the error is a win; n/(n + 1) is the most. TV: what thresholds tell apart, and
    √(1 − exp(−KL)) (Bretagnolle and Huber).
    """
    length, log_n, off = row["m"], row["log_n"], law.error
    bon = best_of_n(law, log_n=log_n)
    reward = [row["reward_bon"] + side * off / length for side in (-1, 1)]
    low, high = m.letter.reward_range
    mean = float(m.letter.cumulants(0.0)[1])
    least = rate(m.letter, min(reward[0], high)) if reward[0] > mean else 0.0
    prior = [least, min(row["kl_bound"], m.letter.kl_max)]
    to_tilt = [0.0, math.inf]
    if 0 < row["beta"] < math.inf:
        b, log_z = 1 / row["beta"], float(m.letter.log_z(row["beta"]))
        ends = (least - b * reward[1] + log_z, prior[1] - b * reward[0] + log_z)
        to_tilt = [max(ends[0], 0.0), ends[1]]
    shift = np.searchsorted(law.rewards, law.rewards - 2 * off, side="left")
    below = np.concatenate([[0.0], np.exp(law.log_cdf)])[shift]
    most = _most(log_n)
    return {
        "reward_bon": [max(reward[0], low), min(reward[1], high)],
        "kl_bon_prior": prior, "kl_bon_tilt": to_tilt,
        "tv": [_apart(m, law, bon, row["beta"]), math.sqrt(-math.expm1(-length * to_tilt[1]))],
        "win_rate": [min(float(np.exp(bon) @ below), most), most],
    }  # fmt: skip


def _apart(m: Model, law: RewardLaw, bon: Any, beta: float) -> float:
    """A lower bound of TV: the largest difference of P(reward >= x), errors against it."""
    probs = np.array(_tilted_letters(m, beta))
    tilt = reward_law(probs, m.rewards, law.length)
    above = lambda log_mass: np.append(np.cumsum(np.exp(log_mass)[::-1])[::-1], 0.0)
    ours, theirs = above(bon), above(tilt.log_prob)
    # Levels are floats: a little more than the error, so that none is on the wrong side.
    slack = 1e-9 * law.error + 1e-12 * float(np.abs(law.rewards).max())
    off, their_off = law.error + slack, tilt.error + slack
    here = np.searchsorted(law.rewards, law.rewards + off, side="left")
    there = np.searchsorted(tilt.rewards, law.rewards - their_off, side="left")
    sure, at_most = ours[here], theirs[there]
    back = np.searchsorted(law.rewards, law.rewards - off, side="left")
    ahead = np.searchsorted(tilt.rewards, law.rewards + their_off, side="left")
    return float(max((sure - at_most).max(), (theirs[ahead] - ours[back]).max(), 0.0))


def _tilted_letters(m: Model, beta: float) -> list[float]:
    return m.letter.token_marginals(m.letter.tilt(beta), len(m.probs)).tolist()
