r"""Draw from a target: every method returns a `WeightedSample`.

A sampler needs a proposal q that it can draw from and score, and the target's log density. The
backends join the two in a `Source` (``infer_align.jax.source``, ``infer_align.torch.source``); the
decisions (accept, resample, swap) are taken here, in NumPy float64, from the source's own random
generator. Outcomes are on axis 0, contexts on the trailing axes; every context is sampled on its
own, and all of them in the same calls of the model.
"""

from infer_align.samplers._source import Drawn, Source, TokenStream
from infer_align.targets import WeightedSample

__all__ = ["Drawn", "Source", "TokenStream", "WeightedSample"]
