"""Language models in torch: policies, targets from Pyro programs, fits, and their checkpoints."""

from infer_align.torch import _installed  # noqa: F401
from infer_align.torch.assess import Draws, assess, collect
from infer_align.torch.best_of_n import BestOfN
from infer_align.torch.checkpoints import load_checkpoint, save_checkpoint
from infer_align.torch.classifiers import classifier
from infer_align.torch.continuations import Continuations
from infer_align.torch.fit import FitState, Step, fit
from infer_align.torch.gguf import smollm2_path
from infer_align.torch.policies import CausalLM
from infer_align.torch.pyro import target
from infer_align.torch.rewards import score
from infer_align.torch.soups import weight_average
from infer_align.torch.sources import Mixture, mixture, source
from infer_align.torch.token_laws import PerToken, per_token
from infer_align.torch.token_products import TokenProduct

__all__ = [
    "BestOfN",
    "CausalLM",
    "Continuations",
    "Draws",
    "FitState",
    "Mixture",
    "PerToken",
    "Step",
    "TokenProduct",
    "assess",
    "classifier",
    "collect",
    "fit",
    "load_checkpoint",
    "mixture",
    "per_token",
    "save_checkpoint",
    "score",
    "smollm2_path",
    "source",
    "target",
    "weight_average",
]
