#!/usr/bin/env python3
"""`sfa bench attention` beside PyTorch's cuDNN attention and FlashAttention-2 (the backends of scaled_dot_product_attention).

    attention_vs_cudnn.py SFA [--op forward,backward,decode] [--d 64,128] [--k 8,16] [--n 1024,4096,16384] ...

Shapes and types come from our own figures, so that every shape is timed by all of them in one run. The rivals get the better of two
layouts: heads packed as a QKV product leaves them, and [B, H, T, D] contiguous. Medians of event timings. A ratio is the rival's time over
ours: above 1, ours is faster. SFA's time includes its selection. With --hidden everybody's forward begins with the projection of that many
features into the packed rows (the rivals': torch.nn.functional.linear), behind which SFA may select in the same kernel.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

BACKENDS = {"cuDNN": "CUDNN_ATTENTION", "FA2": "FLASH_ATTENTION"}


def median_ms(call, reps):
    times = []
    for i in range(reps + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def operands(row, packed):
    """q, k, v as [B, heads, T, D]."""
    batch, n, d, heads, kv_heads = (row[key] for key in ("batch", "n", "d", "heads", "kv_heads"))
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    if row["op"] == "decode":
        return make(batch, heads, 1, d), make(batch, kv_heads, n, d), make(batch, kv_heads, n, d)
    if not packed:
        return make(batch, heads, n, d), make(batch, kv_heads, n, d), make(batch, kv_heads, n, d)
    qkv = make(batch, n, heads + 2 * kv_heads, d)
    return tuple(t.transpose(1, 2) for t in qkv.split([heads, kv_heads, kv_heads], 2))


def time_projected(row, backend, reps):
    """Projection and attention on its packed rows."""
    batch, n, d, heads, kv_heads, hidden = (row[key] for key in ("batch", "n", "d", "heads", "kv_heads", "hidden"))
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    x, weight, bias = make(batch, n, hidden), make((heads + 2 * kv_heads) * d, hidden), make((heads + 2 * kv_heads) * d)
    gqa = {"enable_gqa": True} if heads != kv_heads else {}

    def forward():
        rows = torch.nn.functional.linear(x, weight, bias).view(batch, n, heads + 2 * kv_heads, d)
        q, k, v = (t.transpose(1, 2) for t in rows.split([heads, kv_heads, kv_heads], 2))
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **gqa)

    try:
        with sdpa_kernel(backend), torch.no_grad():
            return median_ms(forward, reps)
    except RuntimeError as error:
        print(f"# {backend}: {str(error).splitlines()[0]}")
        return None


def time_rival(row, backend, reps):
    if row["hidden"]:
        return time_projected(row, backend, reps)
    best = None
    gqa = {"enable_gqa": True} if row["heads"] != row["kv_heads"] else {}
    for packed in (False,) if row["op"] == "decode" else (True, False):
        q, k, v = operands(row, packed)
        attend = lambda: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=row["op"] != "decode", **gqa)
        try:
            with sdpa_kernel(backend):
                if row["op"] == "backward":
                    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
                    out = attend()
                    grad = torch.randn_like(out)
                    ms = median_ms(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), reps)
                else:
                    with torch.no_grad():
                        ms = median_ms(attend, reps)
        except RuntimeError as error:
            print(f"# {backend}: {str(error).splitlines()[0]}")
            return None
        best = ms if best is None else min(best, ms)
    return best


def ours(args, op):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ours.json")
        command = [args.sfa, "bench", "attention", "--op", op, "--d", args.d, "--k", args.k, "--n", args.n, "--selection", args.selection,
                   "--supports", args.supports, "--repetitions", str(args.reps), "--device", "cuda", "--json", path]
        command += ["--heads", args.heads] if args.heads else []
        command += ["--kv-cache", args.kv_cache] if op == "decode" else []
        command += ["--batch", str(args.batch)] if args.batch else []
        command += ["--hidden", str(args.hidden)] if args.hidden else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(path) as file:
            return json.load(file)["rows"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfa")
    parser.add_argument("--op", default="forward,backward")
    parser.add_argument("--d", default="64,128")
    parser.add_argument("--k", default="8,16")
    parser.add_argument("--n", default="1024,2048,4096,8192,16384,65536")
    parser.add_argument("--selection", default="topk,topk_2of4")
    parser.add_argument("--supports", default="random")
    parser.add_argument("--kv-cache", default="full", help="decode: full, int8")
    parser.add_argument("--heads", default="")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=0, help="features of the projection that everybody's forward begins with")
    parser.add_argument("--reps", type=int, default=20)
    parser.add_argument("--json", default="", help="write all figures to this file")
    args = parser.parse_args()
    global torch, SDPBackend, sdpa_kernel  # behind the command line, so that --help needs no PyTorch
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    print(f"{'op':8} {'variant':22} {'n':>7} {'B':>4} {'ms':>9} {'selection':>9} {'projected':>9} {'to dense':>9}" +
          "".join(f" {name + ' ms':>9} {'to ' + name:>8}" for name in BACKENDS))
    rows, rivals = [], {}
    for op in args.op.split(","):
        for row in ours(args, op):
            shape = tuple(row[key] for key in ("op", "d", "n", "batch", "heads", "kv_heads"))
            if shape not in rivals:
                rivals[shape] = {name: time_rival(row, getattr(SDPBackend, backend), args.reps) for name, backend in BACKENDS.items()}
                torch.cuda.empty_cache()
            row["rivals_ms"] = rivals[shape]
            rows.append(row)
            variant = row["type"] + (" int8" if row["kv_cache"] == "int8" else "") + (f" k={row['k']} {row['selection']}" if row["type"] == "sfa" else "") + f" d={row['d']}"
            line = f"{op:8} {variant:22} {row['n']:7} {row['batch']:4} {row['ms']:9.4f} {row['selection_ms']:9.4f} {row['projection_ms']:9.4f}"
            line += f" {row['ratio_to_dense']:9.3f}" if row["ratio_to_dense"] else f" {'':9}"
            for ms in rivals[shape].values():
                line += f" {ms:9.4f} {ms / row['ms']:8.3f}" if ms else f" {'-':>9} {'-':>8}"
            print(line, flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
