"""Numbers given as text, booleans, NaN or complex to targets and exact analysis: a sentence each.

In a process of its own, as users run it: the tests' type checks would refuse most of these before.
"""

import subprocess
import sys

SWEEP = """
import math
import numpy as np
from infer_align import RewardCdf, WeightedSample, best_of_n, match_moments, moment_match
from infer_align import quantile_tilt, soft_best_of_n, solve_moments, targets, threshold, tilt
from infer_align import top_fraction, uncertainty_weighted
from infer_align.divergences import reverse_kl
from infer_align.exact import Chain, RewardLaw, asymptotics, calibrated, nash, regularized
from infer_align.exact import reward_law, selection, tilts

class Prior:
    def log_prob(self, y):
        return np.log([0.5, 0.3, 0.2])[y]

prior, r, y = Prior(), (lambda y: 1.0 * y), np.arange(3)
log_p = np.log([0.5, 0.3, 0.2])
cdf, sample = RewardCdf.exact(1.0 * y, log_p), WeightedSample(y, 0.0 * y, 0.0 * y)
law, two = reward_law([0.5, 0.3, 0.2], [0, 1, 2]), np.array([[0.5, 0.5], [0.2, 0.8]])
chain = Chain(np.array([0.5, 0.5]), two, [0, 1], 5)
last = moment_match(prior, {"last": (lambda y: y == 2, 0.4)})
CALLS = {
    "tilt": lambda x: tilt(prior, r, x),
    "temper": lambda x: targets.temper(prior, x),
    "geometric_mixture": lambda x: targets.geometric_mixture([prior, prior], [x, 0.5]),
    "best_of_n": lambda x: best_of_n(prior, r, x, cdf),
    "soft_best_of_n": lambda x: soft_best_of_n(prior, r, x, 1.0, cdf),
    "its temperature": lambda x: soft_best_of_n(prior, r, 2, x, cdf),
    "quantile_tilt": lambda x: quantile_tilt(prior, r, cdf, x),
    "top_fraction": lambda x: top_fraction(prior, r, x, cdf),
    "threshold": lambda x: threshold(prior, r, x),
    "threshold's tolerance": lambda x: threshold(prior, r, 1.0, tolerance=x),
    "moment_match": lambda x: moment_match(prior, {"a": (r, x)}),
    "its multipliers": lambda x: moment_match(prior, {"a": (r, 0.4)}, multipliers={"a": x}),
    "kl_budget": lambda x: targets.kl_budget(prior, r, x, sample),
    "its ess_min": lambda x: targets.kl_budget(prior, r, 0.1, sample, ess_min=x),
    "its context_weights": lambda x: targets.kl_budget(prior, r, 0.1, sample, context_weights=x),
    "solve_moments": lambda x: solve_moments(last, sample, tolerance=x),
    "match_moments": lambda x: match_moments(last, None, n=x),
    "its rounds": lambda x: match_moments(last, None, rounds=x),
    "uncertainty_weighted": lambda x: uncertainty_weighted(r, weight=x),
    "preference_tilt": lambda x: targets.preference_tilt(prior, r, y, x),
    "RewardCdf": lambda x: RewardCdf.exact(1.0 * y, log_p, tolerance=x),
    "RewardLaw": lambda x: RewardLaw.of_outcomes(1.0 * y, log_p, tolerance=x),
    "law.tilt": law.tilt,
    "law.log_z": law.log_z,
    "beta_for_kl": lambda x: tilts.beta_for_kl(law, x),
    "beta_for_reward": lambda x: tilts.beta_for_reward(law, x),
    "selection.best_of_n": lambda x: selection.best_of_n(law, x),
    "its log_n": lambda x: selection.best_of_n(law, log_n=x),
    "selection.soft_best_of_n": lambda x: selection.soft_best_of_n(law, 2, x),
    "best_of_poisson": lambda x: selection.best_of_poisson(law, x),
    "selection.threshold": lambda x: selection.threshold(law, x),
    "inference_aware": lambda x: selection.inference_aware(law, x, 1.0),
    "optimum": lambda x: regularized.optimum(law, reverse_kl, x),
    "optimum_for_budget": lambda x: regularized.optimum_for_budget(law, reverse_kl, x),
    "rate": lambda x: asymptotics.rate(law, x),
    "rate's beta": lambda x: asymptotics.rate(law, 1.0, beta=x),
    "scaled_cumulant": lambda x: asymptotics.scaled_cumulant(law, x),
    "bahadur_rao": lambda x: asymptotics.bahadur_rao(law, x, 50),
    "its length": lambda x: asymptotics.bahadur_rao(law, 1.0, x),
    "best_of_n_limit": lambda x: asymptotics.best_of_n_limit(law, x, 50),
    "nash": lambda x: nash([[0.5, 0.6], [0.4, 0.5]], np.log([0.5, 0.5]), x),
    "Chain.solve": chain.solve,
    "calibrated.best_of_n": calibrated.best_of_n,
    "calibrated.tilt": calibrated.tilt,
    "calibrated.best_of_poisson": calibrated.best_of_poisson,
    "calibrated.threshold": calibrated.threshold,
}
SENTENCE = ("must be", "needs", "need ", "positive", "finite", "number", "between", "got")
RAW = ("not supported", "unsupported operand", "must be real number", "could not convert")
for name, call in CALLS.items():
    for x in ("0.1", True, math.nan, 0.5 + 1j):
        try:
            call(x)
        except (ValueError, TypeError) as error:
            said = str(error)
            if any(raw in said for raw in RAW) or not any(word in said for word in SENTENCE):
                print(name, repr(x), said)
        else:
            print(name, repr(x), "is taken")
"""


def test_what_is_no_number_is_refused_in_a_sentence():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SWEEP], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
