#!/usr/bin/env python3
"""Qwen3 training in PyTorch, the rival of `sfa train` in scripts/bench/qwen3_gpu.sh: transformers' Qwen3ForCausalLM with random weights, bf16,
torch.compile, scaled_dot_product_attention and fused AdamW. Prints one JSON object: tokens a second (median step), peak memory, the time of compiling.

    python3 scripts/bench/qwen3_pytorch.py --model 0.6b --batch 8 --seq-len 4096        # needs torch, transformers, one GPU

--precision bf16 (default) keeps weights, gradients and moments in bf16: the fastest and smallest that transformers has, and less than what `sfa`
keeps by default (fp32 masters, gradients and moments). autocast keeps fp32 weights and moments. --data takes tokens of a token file in place of random ones.
"""
import argparse
import json
import statistics
import time

# layers, hidden_size, query heads, intermediate_size, tied: the published sizes; 8 key heads of 128 each
SIZES = {"0.6b": (28, 1024, 16, 3072, True), "1.7b": (28, 2048, 16, 6144, True), "4b": (36, 2560, 32, 9728, True),
         "8b": (36, 4096, 32, 12288, False), "tiny": (4, 128, 4, 384, True)}


def build(args):
    layers, width, heads, inner, tied = SIZES[args.model]
    config = Qwen3Config(vocab_size=args.vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=8 if heads > 4 else 2,
                         head_dim=128 if heads > 4 else 64, intermediate_size=inner, max_position_embeddings=40960, rms_norm_eps=1e-6,
                         rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=tied, use_cache=False,
                         attn_implementation="sdpa")
    torch.set_default_dtype(torch.bfloat16 if args.precision == "bf16" else torch.float32)
    with torch.device(args.device):
        model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def windows(args):
    """Batches of token ids, on the device before they are timed."""
    if not args.data:
        generator = torch.Generator(args.device).manual_seed(args.seed)
        while True:
            yield torch.randint(args.vocab, (args.batch, args.seq_len), generator=generator, device=args.device)
    import h5py
    with h5py.File(args.data) as f:
        tokens = torch.from_numpy(f["tokens"][:20_000_000].astype("int64"))
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        starts = torch.randint(len(tokens) - args.seq_len, (args.batch,), generator=generator)
        yield torch.stack([tokens[s:s + args.seq_len] for s in starts]).to(args.device)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=SIZES, default="0.6b")
    p.add_argument("--vocab", type=int, default=151936)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seq-len", type=int, default=4096)
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--warmup", type=int, default=3, help="steps before the clock runs, compiling included")
    p.add_argument("--seconds", type=float, default=0, help="stop early when this much time has gone by")
    p.add_argument("--precision", choices=("bf16", "autocast"), default="bf16")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--checkpointing", action="store_true", help="recompute blocks in backward")
    p.add_argument("--data", help="token file of `sfa data tokenize`")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda")
    args = p.parse_args()
    global torch, Qwen3Config, Qwen3ForCausalLM  # behind the command line, so that --help needs neither
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    begin = time.perf_counter()
    torch.manual_seed(args.seed)
    on_gpu = args.device == "cuda"
    model = build(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=on_gpu)

    def loss_of(tokens):
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "autocast"):
            return model(input_ids=tokens, labels=tokens).loss

    if not args.no_compile:
        loss_of = torch.compile(loss_of)
    batches, times, loss, compiled = windows(args), [], None, 0.0
    for step in range(args.warmup + args.steps):
        tokens = next(batches)
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        if step >= args.warmup:
            times.append(time.perf_counter() - start)
        else:
            compiled = time.perf_counter() - begin
        if times and args.seconds and time.perf_counter() - begin > args.seconds:
            break
    median = statistics.median(times)
    result = {"name": f"transformers Qwen3-{args.model}, {args.precision}{'' if args.no_compile else ', torch.compile'}",
              "tokens_per_sec": args.batch * args.seq_len / median, "step_ms": median * 1e3, "steps": len(times), "loss": loss.item(),
              "parameters": sum(q.numel() for q in model.parameters()), "warmup_seconds": compiled, "torch": torch.__version__}
    if on_gpu:
        result |= {"card": torch.cuda.get_device_name(), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
