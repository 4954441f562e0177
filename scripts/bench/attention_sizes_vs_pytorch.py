#!/usr/bin/env python3
"""Times our attention over head sizes, forward and backward, and PyTorch's cuDNN and FlashAttention-2 in the same run.

    attention_sizes_vs_pytorch.py FORWARD_CHECK BACKWARD_CHECK [--reps 11]

The binaries are flash_forward_check and flash_backward_check; their `time_sizes` mode prints "sm90 DxDV N TFLOPS ..." for
the kernels of compute capability 9.0 and "sm80 ..." for those of every card. Causal, 32768 tokens in all, 2048 / max(d, dv)
heads. FLOPs are 2 B H n^2 (d + dv) / 2 forward and 2.5 times that backward. A dash: PyTorch refuses the shape.
"""
import argparse
import statistics
import subprocess
import warnings

RIVALS = {"cudnn": "CUDNN_ATTENTION", "fa2": "FLASH_ATTENTION"}


def times_of(function, reps):
    times = []
    for i in range(reps + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def time_rival(backend, d, dv, n, backward, reps):
    batch, heads = max(1, 32768 // n), 2048 // max(d, dv)
    q, k = (torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16, requires_grad=backward) for _ in range(2))
    v = torch.randn(batch, heads, n, dv, device="cuda", dtype=torch.bfloat16, requires_grad=backward)
    flops = batch * heads * n * n * (d + dv)
    try:
        with sdpa_kernel(backend):
            if not backward:
                with torch.no_grad():
                    ms = times_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), reps)
                return flops / ms * 1e-9
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            d_out = torch.randn_like(out)
            ms = times_of(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True), reps)
            return 2.5 * flops / ms * 1e-9
    except RuntimeError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("forward")
    parser.add_argument("backward")
    parser.add_argument("--reps", type=int, default=11)
    args = parser.parse_args()
    global torch, SDPBackend, sdpa_kernel  # behind the command line, so that --help needs no PyTorch
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    warnings.filterwarnings("ignore")  # PyTorch's reasons for the shapes that it refuses
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    print(f"{'op':9} {'d x dv':8} {'n':>6} {'sm90':>7} {'sm80':>7} {'cudnn':>7} {'fa2':>7}   TFLOP/s")
    for op, binary in (("forward", args.forward), ("backward", args.backward)):
        ours = {}
        lines = subprocess.run([binary, "time_sizes"], check=True, capture_output=True, text=True).stdout.splitlines()
        for kind, size, n, speed, *_ in (line.split() for line in lines):
            ours.setdefault((size, int(n)), {})[kind] = float(speed)
        for (size, n), speeds in ours.items():
            d, dv = (int(x) for x in size.split("x"))
            for name, backend in RIVALS.items():
                speeds[name] = time_rival(getattr(SDPBackend, backend), d, dv, n, op == "backward", args.reps)
                torch.cuda.empty_cache()
            columns = (f"{speeds[key]:7.1f}" if speeds.get(key) else f"{'-':>7}" for key in ("sm90", "sm80", "cudnn", "fa2"))
            print(f"{op:9} {size:8} {n:6} {' '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
