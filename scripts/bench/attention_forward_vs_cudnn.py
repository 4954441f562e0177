#!/usr/bin/env python3
"""Times our attention forward and PyTorch's cuDNN attention on the same causal shapes in one run.

    attention_forward_vs_cudnn.py CHECK_BINARY [--reps 20]

CHECK_BINARY is flash_forward_check; its `time` mode prints "forward D N TFLOPS ...". cuDNN is given its better of two
layouts: heads packed as a QKV product leaves them, and [B, H, T, D] contiguous. FLOPs are 4 B H n^2 d / 2.
"""
import argparse
import statistics
import subprocess


def time_cudnn(d, heads, n, packed, reps):
    batch = max(1, 32768 // n)
    if packed:
        qkv = torch.randn(batch, n, 3, heads, d, device="cuda", dtype=torch.bfloat16)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    else:
        q, k, v = (torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    times = []
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), torch.no_grad():
        for i in range(reps + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            end.record()
            end.synchronize()
            if i >= 3:
                times.append(begin.elapsed_time(end))
    return 2.0 * batch * heads * n * n * d / statistics.median(times) * 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--reps", type=int, default=20)
    args = parser.parse_args()
    global torch, SDPBackend, sdpa_kernel  # behind the command line, so that --help needs no PyTorch
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    ours = {}
    for line in subprocess.run([args.binary, "time"], check=True, capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if fields and fields[0] in ("forward", "sparse24", "topk"):
            ours[(fields[0], int(fields[1]), int(fields[2]))] = float(fields[3])
        elif fields and fields[0] == "selection":
            print(line)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    rival = {}
    for _, d, n in ours:
        if (d, n) not in rival:
            rival[(d, n)] = max(time_cudnn(d, {64: 12, 128: 16}[d], n, packed, args.reps) for packed in (True, False))
    print(f"{'kernel':10} {'d':>4} {'n':>6} {'ours TFLOP/s':>13} {'cuDNN':>8} {'ratio':>6}")
    for (kind, d, n), speed in sorted(ours.items()):
        print(f"{kind:10} {d:4} {n:6} {speed:13.1f} {rival[(d, n)]:8.1f} {speed / rival[(d, n)]:6.3f}")


if __name__ == "__main__":
    main()
