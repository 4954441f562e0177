#!/usr/bin/env python3
"""GPT-2 training in PyTorch, the rival of `sfa train` in scripts/bench/train_*.sh: same shape, same tokens, same optimizer.

Reads the tokens of a token file (`sfa data tokenize`) through h5py, or raw bytes of a text with --text. Prints one JSON object with the median
time of a step. The model is written for speed as a PyTorch user would: scaled_dot_product_attention, fused AdamW, bf16 autocast and torch.compile
on a GPU, plain fp32 eager mode on a CPU.
"""
import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


def keep_largest(x, k):
    """SFA's reference semantics: the k features of largest magnitude, the others zero; autograd then masks the gradient."""
    return x * torch.zeros_like(x).scatter_(-1, x.abs().topk(k, -1).indices, 1.0)


class Block(nn.Module):
    def __init__(self, width, heads, sfa_k):
        super().__init__()
        self.heads, self.sfa_k = heads, sfa_k
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        if self.sfa_k:
            q, k = keep_largest(q, self.sfa_k), keep_largest(k, self.sfa_k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, vocab, positions, layers, heads, width, sfa_k=0):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads, sfa_k) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if name.endswith(("proj.weight", "down.weight")) else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def load_tokens(args):
    if args.text:
        return np.frombuffer(open(args.text, "rb").read(), dtype=np.uint8).astype(np.int64)
    import h5py  # only needed for token files

    with h5py.File(args.data) as f:
        return f["tokens"][: args.max_tokens].astype(np.int64)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--text")
    p.add_argument("--data")
    p.add_argument("--max-tokens", type=int, default=20_000_000)
    p.add_argument("--vocab", type=int, default=257)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--seq-len", type=int, default=64)
    p.add_argument("--batch", type=int, default=12, help="sequences an optimizer step")
    p.add_argument("--micro-batch", type=int, default=0)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--min-lr", type=float, default=0.0, help="with it: linear warm-up and cosine down to it")
    p.add_argument("--warmup", type=int, default=0)
    p.add_argument("--sfa-k", type=int, default=0, help="SFA with k active features; 0 = dense")
    p.add_argument("--val-fraction", type=float, default=0.0, help="tail of the text to validate on at the end, in non-overlapping windows")
    p.add_argument("--order", choices=("random", "epochs"), default="random",
                   help="random windows, or windows side by side, shuffled anew an epoch, as `sfa train` reads them")
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--precision", choices=("bf16", "tf32", "fp32"), default="bf16", help="of products on a GPU; weights are fp32")
    p.add_argument("--last", type=int, default=0, help="also print the mean training loss of this many last steps")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--name", default="PyTorch")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    on_gpu = args.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    micro = args.micro_batch or args.batch
    tokens = torch.from_numpy(load_tokens(args))
    split = int(len(tokens) * (1 - args.val_fraction))
    tokens, held_out = tokens[:split], tokens[split:]
    model = Gpt2(args.vocab, args.seq_len, args.layers, args.heads, args.width, args.sfa_k).to(args.device)
    decay = [q for q in model.parameters() if q.dim() >= 2]
    other = [q for q in model.parameters() if q.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, args.beta2), fused=on_gpu)
    step_model = torch.compile(model) if args.compile else model
    generator = torch.Generator().manual_seed(args.seed)

    def window_starts():
        while True:
            if args.order == "random":
                yield torch.randint(len(tokens) - args.seq_len - 1, (micro,), generator=generator)
                continue
            order = torch.randperm((len(tokens) - 1) // args.seq_len, generator=generator) * args.seq_len
            yield from order[: len(order) // micro * micro].split(micro)

    starts = window_starts()

    def batch():
        begin = next(starts)
        x = torch.stack([tokens[i : i + args.seq_len] for i in begin])
        y = torch.stack([tokens[i + 1 : i + 1 + args.seq_len] for i in begin])
        return (x.pin_memory().to("cuda", non_blocking=True), y.pin_memory().to("cuda", non_blocking=True)) if on_gpu else (x, y)

    def rate(step):
        if step < args.warmup:
            return args.lr * (step + 1) / (args.warmup + 1)
        if not args.min_lr:
            return args.lr
        progress = (step - args.warmup) / max(1, args.steps - args.warmup)
        return args.min_lr + (args.lr - args.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def cast():
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=on_gpu and args.precision == "bf16")

    @torch.no_grad()
    def validation_loss():
        windows = (len(held_out) - 1) // args.seq_len
        x = held_out[: windows * args.seq_len].view(windows, -1).to(args.device)
        y = held_out[1 : windows * args.seq_len + 1].view(windows, -1).to(args.device)
        at_once = max(1, 2**15 // args.seq_len)
        with cast():
            total = sum(float(model(x[i : i + at_once], y[i : i + at_once])) * len(x[i : i + at_once]) for i in range(0, windows, at_once))
        return total / windows

    times, losses, loss = [], [], None
    for step in range(args.steps):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for _ in range(args.batch // micro):
            x, y = batch()
            with cast():
                loss = step_model(x, y)
            losses.append(loss.detach())
            (loss * micro / args.batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    times = sorted(times[len(times) // 5 :])
    median = times[len(times) // 2]
    result = {
        "name": args.name,
        "step_ms": median * 1e3,
        "tokens_per_sec": args.batch * args.seq_len / median,
        "loss": float(loss),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if args.last:
        result["last_loss"] = float(torch.stack(losses[-args.last * (args.batch // micro) :]).mean())
    if args.val_fraction:
        result["val_loss"] = validation_loss()
    if on_gpu:
        result |= {"card": torch.cuda.get_device_name(), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
