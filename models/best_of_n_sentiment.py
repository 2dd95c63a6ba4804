"""SmolLM2-135M continuing "The movie was", best of 4 by the sentiment of what it writes.

The reward is VADER's compound score of prompt + continuation, in [-1, 1]; 45% of the
continuations tie at 0. The target is the law of the best of 4 draws, whose density needs the
reward's cdf under the model: it is estimated from samples, drawn when the target is made, and the
error of that goes into every interval of an assessment. Its numbers are measured, not exact.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from infer_align import RewardCdf, Target, best_of_n, quantile
from infer_align.torch import CausalLM, score, smollm2_path

PROMPTS = ["The movie was"]
MAX_NEW_TOKENS = 16
N = 4
CDF_SAMPLES = 512
START_TOKEN = 0
"""``<|endoftext|>`` begins a document; the model's BOS, 1, begins a chat message."""

# fmt: off
REFERENCE = {
    "log_z": {"value": 0.0, "tolerance": 0.354,
        "source": "closed form: best of 4 is normalised"},
    "expected_reward": {"value": 0.4641, "tolerance": 0.101,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.4498 to 0.4784"},
    "expected_reward_of_prior": {"value": 0.1103, "tolerance": 0.086,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.0992 to 0.1214"},
    "forward_kl_of_prior": {"value": 0.5874, "tolerance": 0.176,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.5817 to 0.5930"},
    "win_rate": {"value": 0.7855, "tolerance": 0.068,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.7835 to 0.7875"},
}
# fmt: on


def model() -> CausalLM:
    """Load the frozen model in float32."""
    return CausalLM.from_pretrained(
        smollm2_path(), max_new_tokens=MAX_NEW_TOKENS, start_token_id=START_TOKEN
    )


def sentiment(lm: CausalLM) -> Callable[..., Tensor]:
    """Return the reward of outcomes: compound scores of prompt + completion."""
    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return lambda y, prompts: score(compound, y, lm, prompts)


def cdf(lm: CausalLM, seed: int = 0) -> Callable[..., RewardCdf]:
    """Estimate the reward's cdf from samples of the model."""
    generator = torch.Generator().manual_seed(seed)
    y, _ = lm(PROMPTS).sample_with_log_prob((CDF_SAMPLES,), generator=generator)
    return RewardCdf.estimate(sentiment(lm)(y, PROMPTS)).for_contexts(PROMPTS)


def target(lm: CausalLM) -> Target:
    """Return the best of N draws of ``lm`` as a target."""
    return best_of_n(lm, sentiment(lm), N, cdf(lm))


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""
    reward = sentiment(lm)
    return {"reward": reward, "win_rate": quantile(reward, cdf(lm))}
