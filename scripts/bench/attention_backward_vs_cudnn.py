#!/usr/bin/env python3
"""Times our attention backward and PyTorch's cuDNN attention backward on the same causal shapes in one run.

    attention_backward_vs_cudnn.py CHECK_BINARY [--reps 21]

CHECK_BINARY is flash_backward_check; its `time` mode prints "backward D N TFLOPs ms", and "sfa D N TFLOPs ms" for the
backward from sparse rows, whose FLOPs are counted like those of dense ones. cuDNN is given its better of two
layouts: heads packed as a QKV product leaves them, and [B, H, T, D] contiguous. Medians; FLOPs are 10 B H n^2 d / 2.
"""
import argparse
import statistics
import subprocess


def time_cudnn(d, heads, n, packed, reps):
    batch = max(1, 32768 // n)
    shape = (batch, n, 3, heads, d) if packed else (3, batch, heads, n, d)
    qkv = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    if packed:
        q, k, v = (qkv[:, :, i].transpose(1, 2).detach().requires_grad_() for i in range(3))
    else:
        q, k, v = (qkv[i].detach().requires_grad_() for i in range(3))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    d_out = torch.randn_like(out)
    times = []
    for i in range(reps + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return 5.0 * batch * heads * n * n * d / statistics.median(times) * 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--reps", type=int, default=21)
    args = parser.parse_args()
    global torch, SDPBackend, sdpa_kernel  # behind the command line, so that --help needs no PyTorch
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    ours = {}
    for line in subprocess.run([args.binary, "time"], check=True, capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if fields and fields[0] in ("backward", "sfa"):
            ours[(int(fields[1]), int(fields[2]), fields[0])] = float(fields[3])
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    print(f"{'d':>4} {'n':>6} {'':8} {'ours TFLOP/s':>13} {'cuDNN':>8} {'ratio':>6}")
    rivals = {}
    for (d, n, kind), speed in sorted(ours.items()):
        if (d, n) not in rivals:
            rivals[d, n] = max(time_cudnn(d, {64: 12, 128: 16}[d], n, packed, args.reps) for packed in (True, False))
        rival = rivals[d, n]
        print(f"{d:4} {n:6} {kind:8} {speed:13.1f} {rival:8.1f} {speed / rival:6.3f}", flush=True)


if __name__ == "__main__":
    main()
