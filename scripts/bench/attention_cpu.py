#!/usr/bin/env python3
"""Times CPU attention, dense and SFA, and PyTorch's scaled_dot_product_attention on the same shapes in turns.

    attention_cpu.py BENCH [--threads 1] [--rounds 5] [--filter REGEX]

BENCH is attention_cpu_bench. Every round runs all of ours once and all of PyTorch's once; medians over rounds are of the
processor time that the process used for one call, which other work on the machine disturbs less than wall time.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import time


def ours(bench, pattern, threads):
    command = [bench, "--benchmark_format=json", "--benchmark_min_time=0.1"]
    if pattern:
        command.append(f"--benchmark_filter={pattern}")
    out = subprocess.run(command, env=dict(os.environ, OMP_NUM_THREADS=str(threads)), check=True, capture_output=True)
    for row in json.loads(out.stdout)["benchmarks"]:
        parts = row["name"].split("/")[:8]
        yield tuple(parts), row["cpu_time"], row.get("overlapping")


def timed(call):
    call()
    count, begin = 0, time.process_time()
    while count == 0 or time.process_time() - begin < 0.1:
        call()
        count += 1
    return (time.process_time() - begin) / count * 1e3


def rival(which, b, h, d, t):
    queries = 1 if which == "decode" else t
    rows = lambda n: torch.randn(b, n, h, d).transpose(1, 2)
    q, k, v = rows(queries), rows(t), rows(t)
    attention = torch.nn.functional.scaled_dot_product_attention
    if which == "backward":
        for x in (q, k, v):
            x.requires_grad_()
        out = attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        return timed(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
    with torch.no_grad():
        return timed(lambda: attention(q, k, v, is_causal=which == "forward"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("bench")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--filter", default="")
    args = arguments.parse_args()
    global torch  # behind the command line, so that --help needs no PyTorch
    import torch
    torch.set_num_threads(args.threads)

    times, overlap = {}, {}
    for _ in range(args.rounds):
        shapes = []
        for name, milliseconds, share in ours(args.bench, args.filter, args.threads):
            times.setdefault(name, []).append(milliseconds)
            overlap[name] = share
            shape = (name[0], *map(int, name[3:7]))
            if shape not in shapes:
                shapes.append(shape)
        for shape in shapes:
            times.setdefault(shape, []).append(rival(*shape))

    with open("/proc/cpuinfo") as info:
        model = re.search(r"model name\s*: (.*)", info.read()).group(1)
    print(f"{model}, {args.threads} thread(s), PyTorch {torch.__version__}, median of {args.rounds} rounds, ms of processor time")
    print(f"{'pass':9}{'B':>4}{'H':>4}{'D':>5}{'n':>6}  {'PyTorch':>9}{'dense':>9}{'/PyTorch':>9}   SFA: k, supports, ms, times dense")
    median = lambda name: statistics.median(times[name])
    for shape in sorted((s for s in times if len(s) == 5), key=str):
        which, sizes = shape[0], tuple(str(x) for x in shape[1:])
        dense = next((n for n in times if len(n) == 8 and n[0] == which and n[1] == "dense" and n[3:7] == sizes), None)
        row = f"{which:9}{shape[1]:4}{shape[2]:4}{shape[3]:5}{shape[4]:6}  {median(shape):9.3f}"
        if dense is None:
            print(row)
            continue
        row += f"{median(dense):9.3f}{median(shape) / median(dense):8.2f}x  "
        for name in times:
            if len(name) == 8 and name[0] == which and name[1] == "sfa" and name[3:7] == sizes:
                row += f" | {name[7]} {name[2]} ({100 * overlap[name]:.0f} % overlap) {median(name):.3f} {median(dense) / median(name):.2f}x"
        print(row)


if __name__ == "__main__":
    main()
