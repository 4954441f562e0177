#!/usr/bin/env python3
"""Writes tiny checkpoints as transformers saves them, hf_*/ beside this script, and the logits that transformers computes with them.

    python3 tests/golden/make_hf_golden.py         # needs torch and transformers; CPU; some seconds

hf_NAME.bin (the format is that of make_golden.py) holds `tokens` [T] and `logits` [T, V], in float64 from the weights as they were saved.
"""
import copy
import os
import shutil
import sys

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_golden import HERE, write  # noqa: E402


def fill(model, seed):
    """Random values everywhere, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            p.copy_(0.15 * torch.randn(p.shape, generator=generator))
            if p.dim() == 1 and name.endswith("weight"):
                p.add_(1.0)
    return model


def save(name, model, dtype, **how):
    """Saves in `dtype`, and the logits of the rounded weights."""
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = copy.deepcopy(model).to(dtype)
    (model.base_model if how.pop("base", False) else model).save_pretrained(folder, **how)
    for extra in ("generation_config.json",):
        if name != "hf_gpt2" and os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    tokens = (torch.arange(12) * 29 + 3) % model.config.vocab_size
    # Loaded again: converting a model also rounds tables that are not weights.
    logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()(tokens[None]).logits[0]
    write(name + ".bin", {"tokens": tokens, "logits": logits})


def main():
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=67, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=40, layer_norm_epsilon=2e-5,
                      bos_token_id=66, eos_token_id=66)
    model = fill(GPT2LMHeadModel(gpt2), 1)
    save("hf_gpt2", model, torch.float32)
    save("hf_gpt2_bf16_shards", model, torch.bfloat16, max_shard_size="4KB")
    save("hf_gpt2_fp16_base", model, torch.float16, base=True)
    small = dict(vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=32, rms_norm_eps=2e-6,
                 bos_token_id=65, eos_token_id=66)
    qwen3 = Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, rope_theta=5e5, **small)
    save("hf_qwen3_tied", fill(Qwen3ForCausalLM(qwen3), 2), torch.float32)
    qwen3 = Qwen3Config(num_attention_heads=2, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False, rope_theta=1e4, **small)
    save("hf_qwen3_untied", fill(Qwen3ForCausalLM(qwen3), 3), torch.bfloat16, max_shard_size="6KB")


if __name__ == "__main__":
    main()
