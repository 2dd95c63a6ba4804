"""A tiny model of every causal-LM class of Transformers that takes generic fields.

Vocabulary 5; the parameters are drawn anew, large enough for positions and neighbours to show.
"""

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from infer_align.torch import CausalLM
from tests.lm_zoo import all_outcomes

VOCAB, EOS = 5, 4
LARGEST = 3_000_000
"""Parameters of a model that still counts as tiny."""

WIDTH, HEADS, LAYERS = 16, 4, 2
_SAME: list[tuple[Any, str]] = [
    (WIDTH, "hidden_size n_embd d_model dim embedding_size hidden_dim embed_dim emb_dim d_embed"),
    (WIDTH, "word_embed_proj_dim attention_hidden_size"),
    (24, "intermediate_size ffn_dim n_inner d_ff d_inner ffn_hidden_size encoder_ffn_dim dim_ff"),
    (24, "decoder_ffn_dim feed_forward_size dff shared_intermediate_size intermediate_size_mlp"),
    (24, "mlp_hidden_size"),
    (8, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    (8, "hidden_size_per_layer_input q_lora_rank kv_lora_rank global_head_dim"),
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads"),
    (HEADS, "encoder_attention_heads decoder_attention_heads"),
    (HEADS, "num_encoder_attention_heads num_decoder_attention_heads"),
    (2, "num_key_value_heads num_kv_heads"),
    (4, "head_dim kv_channels qk_nope_head_dim v_head_dim qk_rope_head_dim rotary_dim"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers"),
    (LAYERS, "num_decoder_layers num_encoder_layers num_blocks"),
    (32, "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx"),
    (32, "max_target_positions seq_length context_length"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk top_k moe_k"),
    (1, "n_group topk_group n_shared_experts first_k_dense_replace num_dense_layers"),
    (1, "moe_layer_freq num_codebooks"),
    # States
    (4, "state_size mamba_d_state ssm_state_size mamba_state_size time_step_rank mamba_dt_rank"),
    (4, "mamba_n_heads mamba_num_heads linear_num_value_heads"),
    (4, "linear_key_head_dim linear_value_head_dim"),
    (2, "linear_num_key_heads n_groups mamba_n_groups mamba_expand"),
    (8, "mamba_d_head mamba_head_dim"),
    (32, "mamba_d_ssm"),
    # Windows and chunks that three tokens pass
    (4, "sliding_window attention_window_size attention_chunk_size chunk_size mamba_chunk_size"),
    # Which layers attend
    (2, "attn_layer_period full_attention_interval expert_layer_period"),
    (1, "attn_layer_offset expert_layer_offset"),
]
FIELDS: dict[str, Any] = {name: value for value, names in _SAME for name in names.split()} | {
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 3,
    "is_decoder": True,
    "decoder_start_token_id": 0,
    "attn_layer_indices": [1],
    "block_types": ["recurrent", "attention"],
    "mlp_layer_types": None,
    "axial_pos_embds": False,
    "default_language": "en_XX",
}


OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zaya": {"num_experts_per_tok": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
}
"""What a few more classes ask for, by model type."""


def tiny_config(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration with every generic field that it has, also in its text part."""
    config = kind(**_fields(kind()))
    for part in (config, getattr(config, "text_config", config)):
        part._experts_implementation = "eager"  # the others have no float64
    return config


def _fields(default: PreTrainedConfig) -> dict[str, Any]:
    names = set(default.to_dict()) | set(default.attribute_map or {})
    fields = {k: v for k, v in FIELDS.items() if k in names}
    if "kv_lora_rank" in fields:  # multi-head latent attention
        fields.pop("head_dim", None)
        fields["num_key_value_heads"] = HEADS
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    mapped = (default.attribute_map or {}).get("layer_types", "layer_types")
    if kinds and not isinstance(getattr(type(default), mapped, None), property):
        fields["layer_types"] = (kinds * LAYERS)[: max(LAYERS, len(kinds))]
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in fields:
                fields[name] = len(fields["layer_types"])
    for part in ("text_config", "decoder_config"):
        inner = getattr(default, part, None)
        if isinstance(inner, PreTrainedConfig):
            fields[part] = _fields(inner)
    return fields | OWN.get(default.model_type, {})


def tiny(
    kind: type[PreTrainedConfig], model: type[PreTrainedModel], *, seed: int = 0
) -> PreTrainedModel:
    """A model of one class in float64, without touching torch's generators."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        config = tiny_config(kind)
        with torch.device("meta"):
            size = sum(p.numel() for p in model(tiny_config(kind)).parameters())
        if size > LARGEST:
            raise ValueError(f"{size:,} parameters with the generic fields")
        torch.manual_seed(seed)
        made = model(config).to(torch.float64).eval()
        spread(made)
    return made


@torch.no_grad()
def spread(model: nn.Module, size: float = 0.4) -> None:
    """Draw the matrices anew: laws far from uniform, and nothing that starts at zero."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            p.normal_(0.0, size)
        elif "norm" in name or "ln" in name:
            p.add_(0.1 * torch.randn_like(p))
        elif "A_log" not in name and "dt" not in name:
            p.add_(0.1 * torch.randn_like(p))


def classes() -> list[tuple[type[PreTrainedConfig], type[PreTrainedModel]]]:
    """Every causal-LM class once, with a configuration of its."""
    found: dict[str, tuple[Any, Any]] = {}
    for kind, models in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        for model in models if isinstance(models, tuple) else (models,):
            own = model.config_class
            found.setdefault(model.__name__, (own if isinstance(own, type) else kind, model))
    return [found[name] for name in sorted(found)]


PROMPTS = [[1, 2], [3], [0, 1, 2, 3, 1], [2, 1, 1, 0, 3, 2, 1, 3, 0, 0, 1, 2, 0, 1]]
"""The last is longer than the others by more than any window or chunk of `FIELDS`."""
LENGTH = 3


def outcomes() -> torch.Tensor:
    """All outcomes of at most LENGTH tokens."""
    return all_outcomes((EOS,), vocab=VOCAB, length=LENGTH)


@torch.no_grad()
def definition(model: PreTrainedModel, prompt: list[int], *, alone: bool) -> torch.Tensor:
    """Log-probabilities of `outcomes` from their prefixes, nothing padded or cached.

    Each alone in its pass, or beside the others of its length.
    """
    prefixes = {tuple(y[:t]) for y in outcomes().tolist() for t in range(LENGTH)}
    laws: dict[tuple[int, ...], torch.Tensor] = {}
    for t in range(LENGTH):
        some = [p for p in prefixes if len(p) == t and EOS not in p]
        for part in [[p] for p in some] if alone else [some]:
            logits = model(input_ids=torch.tensor([[*prompt, *p] for p in part])).logits[:, -1]
            laws |= dict(zip(part, logits.double().log_softmax(-1), strict=True))
    found = []
    for y in outcomes().tolist():
        end = y.index(EOS) + 1 if EOS in y else LENGTH
        found.append(sum(float(laws[tuple(y[:t])][y[t]]) for t in range(end)))
    return torch.tensor(found, dtype=torch.float64)


def verdict(model: PreTrainedModel) -> tuple[str, float]:
    """How a model is run, or why it is refused, and the largest gap to its definition in nats.

    Of the scorer on all outcomes of the prompts at once, and of the sampler's own numbers.
    """
    lm = CausalLM(model, None, max_new_tokens=LENGTH, eos_token_ids=(EOS,))
    rows = outcomes()
    try:
        with torch.no_grad():
            scored = lm(PROMPTS).log_prob(rows[:, None].expand(-1, len(PROMPTS), -1))
        generator = torch.Generator().manual_seed(0)
        drawn, sampled = lm(PROMPTS).sample_with_log_prob((20,), generator=generator)
    except ValueError as error:
        if type(model).__name__ not in str(error):
            raise
        return f"refused: {error}", 0.0
    laws = [definition(model, prompt, alone=prompt is PROMPTS[0]) for prompt in PROMPTS]
    right = torch.stack(laws, dim=1)
    places = {tuple(row): i for i, row in enumerate(rows.tolist())}
    index = torch.tensor([[places[tuple(y)] for y in row] for row in drawn.tolist()])
    gaps = [(scored - right).abs().max(), (sampled - right.gather(0, index)).abs().max()]
    gaps.append((scored.exp().sum(0) - 1).abs().max())
    handling = lm._network.handling(0, max(map(len, PROMPTS)) + LENGTH - 1)
    ways = [name for name, value in vars(handling).items() if not value]
    return "right" + (f" (without: {', '.join(ways)})" if ways else ""), float(max(gaps))
