#!/usr/bin/env python3
"""Times reading one long prompt with GPT-2 124M: `sfa bench generate` beside the same model in PyTorch, in one run.

    prefill_vs_pytorch.py SFA_BINARY CONFIG [--tokens 131072] [--reps 3]

PyTorch: eager, bf16, scaled_dot_product_attention on the cuDNN backend, keys and values of every layer kept, logits of the
last token. CONFIG is configs/gpt2_124m.yaml; positions and vocabulary are set here.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, scaled_dot_product_attention

VOCABULARY = 50257


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, cache):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        cache.append((k.contiguous(), v.contiguous()))
        x = x + self.proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c))
        return x + self.down(gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, tokens, width=768, heads=12, layers=12):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids):
        cache = []
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x[:, -1]) @ self.wte.weight.T, cache


def time_pytorch(tokens, reps):
    model = Gpt2(tokens).to("cuda", torch.bfloat16)
    ids = torch.randint(VOCABULARY, (1, tokens), device="cuda")
    times = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for i in range(reps + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            result = model(ids)
            torch.cuda.synchronize()
            if i > 0:
                times.append((time.perf_counter() - start) * 1000)
            del result
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("config")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--reps", type=int, default=3)
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    rival = time_pytorch(args.tokens, args.reps)
    torch.cuda.empty_cache()
    print(f"{'PyTorch, cuDNN attention':36} {rival:9.1f} ms", flush=True)
    sfa = ["model.attention.type=sfa", "model.attention.k=8"]
    for name, overrides in (("dense", []), ("sfa k=8", sfa), ("sfa k=8, topk_2of4", sfa + ["model.attention.selection=topk_2of4"]),
                            ("sfa k=8, topk_2of4, int8 values", sfa + ["model.attention.selection=topk_2of4",
                                                                       "model.attention.kv_cache=int8"])):
        command = [args.binary, "bench", "generate", args.config, f"model.max_position_embeddings={args.tokens + 64}",
                   f"model.vocab_size={VOCABULARY}", "data.seq_len=1024", *overrides, "--prompt", str(args.tokens), "--repeats",
                   str(args.reps), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            print(name, "failed:", done.stderr.strip()[-300:])
            continue
        result = json.loads(done.stdout)
        print(f"{name:36} {result['prompt_ms']:9.1f} ms {rival / result['prompt_ms']:6.3f}x, then {result['token_ms']:7.3f} ms a token, "
              f"cache {result['kv_bytes_per_token']:.0f} bytes a token", flush=True)


if __name__ == "__main__":
    main()
