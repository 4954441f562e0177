#!/usr/bin/env python3
"""Writes qwen3_*.bin beside this script: what transformers' Qwen3ForCausalLM computes, for tests/models/qwen3_golden_test.cpp.

    python3 tests/golden/make_golden_qwen3.py            # needs torch, transformers, numpy; CPU; about a minute

Format, weights, batches and optimizer are those of make_golden.py. The model runs in float64: transformers computes norms and rotations in
float32 whatever its weights are, so those two are replaced by the same formulas in the type of their input; the losses of the model as
transformers has it, in float32, are kept beside them and must agree. SFA and attention.rope_projection come in through transformers' own table
of attention functions, which receives queries and keys behind their rotation.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3 import modeling_qwen3

import make_golden as common


def norm_as_given(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotation_as_given(self, x, position_ids):
    d, theta = self.config.head_dim, self.config.rope_parameters["rope_theta"]
    frequency = 1.0 / theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = position_ids[..., None].double() * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


THEIRS = modeling_qwen3.Qwen3RMSNorm.forward, modeling_qwen3.Qwen3RotaryEmbedding.forward


def parameter_shapes(c):
    """Our parameters in our order (src/models/qwen3/qwen3.cpp); the vocabulary is not padded here."""
    C, H, G, D, inner = c["C"], c["H"], c["G"], c["D"], c["F"]
    shapes = [("wte.weight", (c["V"], C))] + ([] if c["tied"] else [("head.weight", (c["V"], C))])
    for l in range(c["L"]):
        h = f"h.{l}."
        shapes += [(h + "attn.qkv.weight", ((H + 2 * G) * D, C)), (h + "attn.proj.weight", (C, H * D)),
                   (h + "mlp.gate_up.weight", (2 * inner, C)), (h + "mlp.down.weight", (C, inner))]
        if c.get("rope_projection"):
            heads = (1, 1) if c["rope_projection"] == "shared" else (H, G)
            shapes += [(h + "attn.q_rope.weight", (heads[0] * D, D)), (h + "attn.k_rope.weight", (heads[1] * D, D))]
        shapes += [(h + "norm1.weight", (C,)), (h + "attn.q_norm.weight", (D,)), (h + "attn.k_norm.weight", (D,)), (h + "norm2.weight", (C,))]
    return shapes + [("norm_f.weight", (C,))]


def their_rows(c, name):
    """Our name -> [(theirs, rows)], in the order in which the rows lie."""
    H, G, D, inner = c["H"], c["G"], c["D"], c["F"]
    if name in ("wte.weight", "head.weight", "norm_f.weight"):
        return [({"wte.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight", "norm_f.weight": "model.norm.weight"}[name], None)]
    _, layer, rest = name.split(".", 2)
    table = {"attn.qkv.weight": [("self_attn.q_proj", H * D), ("self_attn.k_proj", G * D), ("self_attn.v_proj", G * D)],
             "attn.proj.weight": [("self_attn.o_proj", None)], "mlp.gate_up.weight": [("mlp.gate_proj", inner), ("mlp.up_proj", inner)],
             "mlp.down.weight": [("mlp.down_proj", None)], "norm1.weight": [("input_layernorm", None)],
             "attn.q_norm.weight": [("self_attn.q_norm", None)], "attn.k_norm.weight": [("self_attn.k_norm", None)],
             "norm2.weight": [("post_attention_layernorm", None)]}
    return [(f"model.layers.{layer}.{their}.weight", rows) for their, rows in table[rest]]


def mapped(x, weight):
    """x [B,heads,T,D] through the map of each head: weight [D,D] for all, or [heads*D,D]."""
    D = x.shape[-1]
    per_head = weight.view(-1, D, D).expand(x.shape[1], D, D)
    return torch.einsum("bhtd,hed->bhte", x, per_head)


class Theirs:
    def __init__(self, c, dtype, exact):
        modeling_qwen3.Qwen3RMSNorm.forward, modeling_qwen3.Qwen3RotaryEmbedding.forward = (
            (norm_as_given, rotation_as_given) if exact else THEIRS)
        self.c, self.maps = c, {}

        def core(module, q, k, v, attention_mask=None, **unused):
            if self.maps:
                q, k = mapped(q, self.maps[f"h.{module.layer_idx}.attn.q_rope.weight"]), mapped(k, self.maps[f"h.{module.layer_idx}.attn.k_rope.weight"])
            return common.attention(c, q, k, v, self.first_key).transpose(1, 2), None

        ALL_ATTENTION_FUNCTIONS.register("golden", core)
        config = Qwen3Config(vocab_size=c["V"], hidden_size=c["C"], num_hidden_layers=c["L"], num_attention_heads=c["H"], num_key_value_heads=c["G"],
                             head_dim=c["D"], intermediate_size=c["F"], max_position_embeddings=c["P"], rms_norm_eps=c["eps"],
                             rope_parameters={"rope_type": "default", "rope_theta": c["theta"]}, tie_word_embeddings=c["tied"],
                             attn_implementation="golden", bos_token_id=0, eos_token_id=0, pad_token_id=None)
        self.model = Qwen3ForCausalLM(config).to(dtype)
        theirs = dict(self.model.named_parameters())
        self.table = {}
        for i, (name, shape) in enumerate(parameter_shapes(c)):
            value = common.draw(i, name, shape).to(dtype)
            if "_rope." in name:
                self.maps[name] = value.requires_grad_()
                self.table[name] = [self.maps[name]]
                continue
            self.table[name], at = [], 0
            for their, rows in their_rows(c, name):
                parameter = theirs.pop(their)
                rows = rows or shape[0]
                with torch.no_grad():
                    parameter.copy_(value[at:at + rows])
                self.table[name].append(parameter)
                at += rows
            assert at == shape[0], name
        assert not theirs, f"parameters without a counterpart: {list(theirs)}"

    def parameters(self):
        return [p for parts in self.table.values() for p in parts]

    def logits(self, tokens, first_key):
        self.first_key = first_key
        return self.model(tokens, use_cache=False).logits

    def gradients(self):
        return {name: torch.cat([p.grad for p in parts]).detach().clone() for name, parts in self.table.items()}


def train(c, dtype, exact):
    """Losses and gradient norms of the steps; logits and gradients of the first."""
    theirs = Theirs(c, dtype, exact)
    tokens, targets, first = common.batches(c)
    parameters = theirs.parameters()
    optimizer = torch.optim.AdamW([{"params": [p for p in parameters if p.ndim == 2], "weight_decay": common.DECAY},
                                   {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}],
                                  lr=common.LR, betas=common.BETAS, eps=common.EPS)
    losses, norms, logits, gradients = [], [], None, None
    for step in range(common.STEPS):
        first_key = None if first is None else torch.from_numpy(first[step])
        out = theirs.logits(torch.from_numpy(tokens[step]), first_key)
        loss = F.cross_entropy(out.view(-1, c["V"]), torch.from_numpy(targets[step]).view(-1), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            logits, gradients = out.detach().clone(), theirs.gradients()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, common.CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = common.lr_at(step)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), np.array(norms), logits, gradients


def model_golden(name, c):
    common.MARGIN[0] = math.inf
    losses, norms, logits, gradients = train(c, torch.float64, True)
    margin = common.MARGIN[0]
    assert margin > 1e-6, f"{name}: a choice of features hangs on a relative difference of {margin:.1e}; take other tokens"
    losses_f32, _, logits_f32, _ = train(c, torch.float32, False)
    assert np.abs(losses - losses_f32).max() < 2e-5 and (logits - logits_f32).abs().max() < 2e-5, "the replaced formulas are not transformers'"
    tokens, targets, first = common.batches(c)
    tensors = {"losses": losses, "losses_f32": losses_f32, "grad_norms": norms, "tokens": tokens, "targets": targets}
    if first is not None:
        tensors["first_key"] = first
    else:  # the test has logits from generation, which knows no documents
        tensors["logits"] = logits
    tensors.update({"d." + n: g for n, g in gradients.items()})
    common.write(name, tensors)
    print(f"  loss {losses[0]:.5f} -> {losses[-1]:.5f}, float32 differs by {np.abs(losses - losses_f32).max():.1e}, logits by "
          f"{float((logits - logits_f32).abs().max()):.1e}, closest choice {margin:.1e}, gradient norm {norms[0]:.3f}")


def main():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    small = dict(C=32, H=4, G=4, D=8, F=40, L=2, V=131, P=24, B=2, T=20, eps=1e-6, theta=1e6, tied=True)
    model_golden("qwen3_mha.bin", small)
    model_golden("qwen3_gqa2_untied.bin", dict(small, G=2, D=12, tied=False, theta=1e4, eps=1e-5))
    model_golden("qwen3_gqa4.bin", dict(small, G=1, D=16, ignore=True))
    model_golden("qwen3_sfa.bin", dict(small, G=2, D=16, k_q=4, k_k=5))
    model_golden("qwen3_sfa_shared.bin", dict(small, G=2, D=12, k_q=4, k_k=4, rope_projection="shared", tied=False))
    model_golden("qwen3_sfa_per_head.bin", dict(small, G=2, D=12, k_q=3, k_k=5, rope_projection="per_head", documents=True))


if __name__ == "__main__":
    main()
