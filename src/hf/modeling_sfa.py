"""Feature-sparse attention (SFA, arXiv 2603.22300) for models of Hugging Face transformers, in plain PyTorch.

Stands beside the weights of a model that `sfa convert --to hf` wrote, and is loaded by

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Every query and key keeps the k features that are largest by |x| (ties to the lowest index); scores are products over what is left,
scaled by the root of the full width or by score_scale. It is a reference: exact, with all scores in memory. The settings are config.sfa:
type ("sfa", "dense"), k_q, k_k, k_by_layer (both, a block), score_scale, selection, zero_overlap, window, rope_projection, gate. Needs transformers 4.53 or later.
"""
import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM


def select_topk(x, k):
    """Zeros but the k features of largest magnitude."""
    chosen = torch.argsort(x.abs(), dim=-1, descending=True, stable=True)[..., :k]
    return x * torch.zeros_like(x).scatter_(-1, chosen, 1)


def select_topk_2of4(x, k):
    """The same, largest first, but never more than two of four neighbouring features."""
    order = torch.argsort(x.abs(), dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(x)
    used = x.new_zeros(*x.shape[:-1], x.shape[-1] // 4)
    taken = x.new_zeros(*x.shape[:-1], 1)
    for n in range(x.shape[-1]):
        at = order[..., n : n + 1]
        free = ((used.gather(-1, at // 4) < 2) & (taken < k)).to(x.dtype)
        keep.scatter_(-1, at, free)
        used.scatter_add_(-1, at // 4, free)
        taken = taken + free
    return x * keep


def select_topk_pairs(x, k):
    """The k/2 pairs (i, i + D/2), which RoPE turns, of largest norm."""
    a, b = x.float().chunk(2, -1)
    chosen = torch.argsort(a * a + b * b, dim=-1, descending=True, stable=True)[..., : k // 2]
    keep = torch.zeros_like(a).scatter_(-1, chosen, 1).to(x.dtype)
    return x * torch.cat([keep, keep], -1)


SELECTION = {  # of queries, of keys
    "topk": (select_topk, select_topk),
    "topk_2of4": (select_topk_2of4, select_topk),
    "topk_pairs": (select_topk_pairs, select_topk_pairs),
}


def rotated_map(x, linear):
    """The linear map behind RoPE: x [B, heads, T, D]; weight [D, D] for all heads or [heads * D, D]."""
    D = x.shape[-1]
    return torch.einsum("bhtd,hed->bhte", x, linear.weight.view(-1, D, D).expand(x.shape[1], D, D))


def add_gates(attention, query_heads, key_heads, D):
    """A factor for every feature of every head, on what features are selected from."""
    for name, heads in (("q_gate", query_heads), ("k_gate", key_heads)):
        gate = nn.Module()
        gate.weight = nn.Parameter(torch.ones(heads * D))
        setattr(attention, name, gate)


def gated(x, gate):
    """x [B, heads, T, D]; weight [heads * D]."""
    return x * gate.weight.view(x.shape[1], 1, x.shape[3])


def sfa_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """query [B, H, T, D], key and value [B, G, S, D]; attention_mask [B, 1, T, S], 0 where a key is seen."""
    settings = module.config.sfa
    if attention_mask is None:  # nobody masks: every key up to the query's own
        T, S = query.shape[2], key.shape[2]
        visible = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)[None, None]
    else:
        attention_mask = attention_mask[..., : key.shape[2]]
        visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    place = torch.arange(key.shape[2], device=query.device)
    own = (visible * place).amax(-1, keepdim=True)  # the last key that a query sees is its own
    if settings.get("window", 0) > 0:
        visible = visible & (place > own - settings["window"])
    if settings.get("rope_projection", "none") != "none":
        query, key = rotated_map(query, module.q_rope_proj), rotated_map(key, module.k_rope_proj)
    if settings.get("gate", "none") != "none":
        query, key = gated(query, module.q_gate), gated(key, module.k_gate)
    if settings.get("type") == "sfa":
        of_queries, of_keys = SELECTION[settings.get("selection", "topk")]
        by_layer = settings.get("k_by_layer")
        k_q, k_k = (by_layer[module.layer_idx],) * 2 if by_layer else (settings["k_q"], settings["k_k"])
        query, key = of_queries(query, k_q), of_keys(key, k_k)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if settings.get("zero_overlap", "score") == "mask":
        common = (query != 0).to(query.dtype) @ (key != 0).to(query.dtype).transpose(-1, -2) > 0
        visible = visible & (common | (place == own))
    factor = settings.get("score_scale") or (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = (query @ key.transpose(-1, -2)) * factor
    scores = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
    weights = nn.functional.dropout(scores.softmax(-1).to(value.dtype), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("sfa", sfa_attention)
AttentionMaskInterface.register("sfa", eager_mask)


class SfaGPT2Config(GPT2Config):
    model_type = "sfa_gpt2"


class SfaGPT2LMHeadModel(GPT2LMHeadModel):
    config_class = SfaGPT2Config

    def __init__(self, config):
        config._attn_implementation = "sfa"
        super().__init__(config)
        if config.sfa.get("gate", "none") != "none":
            for layer in self.transformer.h:
                add_gates(layer.attn, config.n_head, config.n_head, config.n_embd // config.n_head)


class SfaQwen3Config(Qwen3Config):
    model_type = "sfa_qwen3"


class SfaQwen3ForCausalLM(Qwen3ForCausalLM):
    config_class = SfaQwen3Config

    def __init__(self, config):
        config._attn_implementation = "sfa"
        super().__init__(config)
        kind, gate, D = config.sfa.get("rope_projection", "none"), config.sfa.get("gate", "none"), config.head_dim
        query_heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        for layer in self.model.layers:
            if kind != "none":
                for name, heads in (("q_rope_proj", query_heads), ("k_rope_proj", key_heads)):
                    setattr(layer.self_attn, name, nn.Linear(D, D if kind == "shared" else heads * D, bias=False))
            if gate != "none":
                add_gates(layer.self_attn, query_heads, key_heads, D)
