#!/usr/bin/env python3
"""Times decoding over a KV cache, dense and SFA, beside PyTorch's cuDNN and FlashAttention-2 on the same shapes in one run.

    decode_vs_cudnn.py CHECK_BINARY [--reps 20]

CHECK_BINARY is flash_decode_check; its `time` mode prints "decode TYPE H G D K B N MS ...". One query a sequence, caches
[B, G, N, D] contiguous, bf16. The rivals get grouped heads by enable_gqa, and where a backend refuses that, the query heads
of a group as query rows without a mask, which is the same arithmetic and reads the cache once.
"""
import argparse
import statistics
import subprocess


def time_rival(backend, heads, groups, d, batch, n, reps):
    k, v = (torch.randn(batch, groups, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = None
    for rows in (False, True):
        if rows and heads == groups:
            continue
        shape = (batch, groups, heads // groups, d) if rows else (batch, heads, 1, d)
        q = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        times = []
        try:
            with sdpa_kernel(backend), torch.no_grad():
                for i in range(reps + 3):
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    begin.record()
                    scaled_dot_product_attention(q, k, v, enable_gqa=not rows and heads != groups)
                    end.record()
                    end.synchronize()
                    if i >= 3:
                        times.append(begin.elapsed_time(end))
        except RuntimeError:
            continue
        ms = statistics.median(times)
        best = ms if best is None else min(best, ms)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--reps", type=int, default=20)
    args = parser.parse_args()
    global torch, SDPBackend, sdpa_kernel, scaled_dot_product_attention  # behind the command line, so that --help needs no PyTorch
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention
    lines = subprocess.run([args.binary, "time"], check=True, capture_output=True, text=True).stdout.splitlines()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    print(f"{'type':16} {'heads':>6} {'d':>4} {'k':>3} {'B':>4} {'n':>7} {'ours ms':>8} {'GB/s':>5} {'cuDNN ms':>9} {'FA2 ms':>8} "
          f"{'cuDNN/ours':>10} {'bytes':>6}")
    rivals = {}
    for line in lines:
        fields = line.split()
        if not fields or fields[0] != "decode":
            continue
        kind = fields[1]
        heads, groups, d, k, batch, n = map(int, fields[2:8])
        ms, speed, size = map(float, fields[8:11])
        shape = (heads, groups, d, batch, n)
        if shape not in rivals:
            rivals[shape] = [time_rival(b, *shape, args.reps) for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)]
            torch.cuda.empty_cache()
        cudnn, flash = rivals[shape]
        show = [f"{t:.4f}" if t else "-" for t in (cudnn, flash)]
        ratio = f"{cudnn / ms:.3f}" if cudnn else "-"
        part = size / (4.0 * batch * groups * n * d)
        print(f"{kind:16} {heads:3}/{groups:2} {d:4} {k:3} {batch:4} {n:7} {ms:8.4f} {speed:5.0f} {show[0]:>9} {show[1]:>8} "
              f"{ratio:>10} {part:6.3f}", flush=True)


if __name__ == "__main__":
    main()
