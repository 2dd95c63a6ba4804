"""SmolLM2-135M praising a film: its continuation must say "amazing" or "wonderful".

GDC's pointwise constraint on a real model (Khalifa et al. 2021, arXiv 2012.11635): the target is
the model given that the constraint holds, of prior probability about 4%. So
log Z = log P = −KL(p‖prior), which rejection, SMC and fits must find. Its numbers are measured.
"""

from collections.abc import Callable, Mapping, Sequence

import pyro
import torch
from torch import Tensor

from infer_align import indicator
from infer_align.torch import CausalLM, score, smollm2_path

PROMPTS = ["I watched the film last night and"]
MAX_NEW_TOKENS = 20
WORDS = ("amazing", "wonderful")
START_TOKEN = 0
"""``<|endoftext|>`` begins a document; the model's BOS, 1, begins a chat message."""

# fmt: off
REFERENCE = {
    "probability": {"value": 0.0376, "tolerance": 0.047,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.0294 to 0.0458"},
    "log_z": {"value": -3.2808, "tolerance": 1.25,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval -3.4999 to -3.0617"},
    "forward_kl_of_prior": {"value": 3.2808, "tolerance": 1.25,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 3.0617 to 3.4999"},
    "target_amazing": {"value": 0.8442, "tolerance": 0.462,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.7631 to 0.9252"},
}
# fmt: on


def model() -> CausalLM:
    """Load the frozen model in float32."""
    return CausalLM.from_pretrained(
        smollm2_path(), max_new_tokens=MAX_NEW_TOKENS, start_token_id=START_TOKEN
    )


def says(completions: Sequence[str]) -> list[float]:
    """1 for each completion that contains one of the words."""
    return [float(any(word in text for word in WORDS)) for text in completions]


def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """1 where the constraint holds: the reward function of the field's trainers."""
    return says(completions)


def target(lm: CausalLM) -> Callable[..., None]:
    """Return the target over continuations by ``lm`` as a Pyro program."""

    def program(prompts: Sequence[str]) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("constraint", indicator(score(reward, y, lm, prompts) > 0.5))

    return program


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""

    def says_amazing(y: Tensor, prompts: Sequence[str]) -> Tensor:
        texts = lm.decode(y.reshape(-1, y.shape[-1]))
        return torch.tensor(["amazing" in t for t in texts]).reshape(y.shape[:-1]).double()

    return {"amazing": says_amazing}
