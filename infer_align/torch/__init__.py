"""Language models in torch: policies, targets from Pyro programs, fits, and their checkpoints."""

from infer_align.torch.assess import Draws, assess, collect
from infer_align.torch.checkpoints import load_checkpoint, save_checkpoint
from infer_align.torch.continuations import Continuations
from infer_align.torch.fit import FitState, Step, fit
from infer_align.torch.gguf import smollm2_path
from infer_align.torch.policies import CausalLM
from infer_align.torch.pyro import target
from infer_align.torch.rewards import classifier, score

__all__ = [
    "CausalLM",
    "Continuations",
    "Draws",
    "FitState",
    "Step",
    "assess",
    "classifier",
    "collect",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
    "score",
    "smollm2_path",
    "target",
]
