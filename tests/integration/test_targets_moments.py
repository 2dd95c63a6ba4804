"""Moments of a real language model, solved on a sample and verified on a fresh one."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import infer_align as ia
from infer_align.torch import gguf

ROOT = Path(__file__).resolve().parents[2]


def gender_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "gender", ROOT / "models" / "gender_biographies.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_moments_of_smollm2_hold_on_fresh_samples() -> None:
    """Solved on 512 draws, within two combined standard errors of the means on 512 others."""
    try:
        gguf.smollm2_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    module = gender_model()
    lm, n = module.model(), 512

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return lm(module.PROMPTS).sample_with_log_prob((n,), generator=generator)[0]

    target = ia.torch.target(module.program(lm))
    zeros = np.zeros((n, 1))
    fit = ia.solve_moments(target, ia.WeightedSample(draw(10), zeros, zeros), module.PROMPTS)
    assert fit.reliable
    means = {"gender": 0.0, "gendered": module.GENDERED}
    assert fit.achieved == pytest.approx(means, abs=1e-9)

    fresh = draw(11)
    gender = module.features(lm)["gender"](fresh, module.PROMPTS).numpy()
    weight = np.exp(fit.target.log_potential(fresh, module.PROMPTS).numpy())
    share = weight / weight.sum()
    for name, values in {"gender": gender, "gendered": np.abs(gender)}.items():
        before, after = values.mean(), (share * values).sum()
        se = math.sqrt(float((share**2 * (values - after) ** 2).sum()))
        combined = math.hypot(se, fit.standard_errors[name])
        assert abs(after - means[name]) < 2 * combined, (name, before, after, combined)
    assert gender.mean() < -0.2  # what the model writes by itself
