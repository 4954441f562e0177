#!/usr/bin/env python3
"""Writes the tables of docs/ that are figures of the GPU check on record (tests/gpu/record.json), so that they are those.

    scripts/bench/record_tables.py            writes what stands between <!-- record: NAME --> and <!-- end of record -->
    scripts/bench/record_tables.py --check    exit code 1 when a table is another record's
"""
import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["docs/benchmarks.md", "docs/kernels_decode.md", "docs/kernels_ops.md"]
MARK = re.compile(r"(<!-- record: (.+?) -->\n).*?(<!-- end of record -->)", re.S)


def rows_of(record, figure, first_words):
    """The lines of a figure that begin with one of the words, split."""
    return [line.split() for line in record["figures"][figure] if line.split()[:1] and line.split()[0] in first_words]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def bold_when_ahead(ratio):
    return f"**{ratio:.2f}**" if ratio >= 1.005 else f"{ratio:.2f}"


def attention(direction, lengths, values, sparse):
    """values: (kind, d, n) -> (ours, cuDNN), TFLOP/s. sparse: (row, kind, d) whose ratio alone is shown."""

    def ratios(kind, d):
        return [bold_when_ahead(values[kind, d, n][0] / values[kind, d, n][1]) for n in lengths]

    rows = []
    for d in (64, 128):
        rows.append([f"dense d={d}: ours / cuDNN"] + ["{:.0f} / {:.0f}".format(*values["dense", d, n]) for n in lengths])
        rows.append(["ratio"] + ratios("dense", d))
        rows += [[name] + ratios(kind, d) for name, kind, wanted in sparse if wanted == d]
    return table([direction] + [f"n = {lengths[0]}"] + [str(n) for n in lengths[1:]], rows)


def forward(record):
    values = {("dense" if r[0] == "forward" else r[0], int(r[1]), int(r[2])): (float(r[3]), float(r[4]))
              for r in rows_of(record, "attention forward beside cuDNN", ("forward", "sparse24"))}
    sparse = [(f"`sparse24` d={d} against cuDNN dense", "sparse24", d) for d in (64, 128)]
    return attention("forward", [1024, 2048, 4096, 16384, 65536], values, sparse)


def backward(record):
    values = {("dense" if r[2] == "backward" else r[2], int(r[0]), int(r[1])): (float(r[3]), float(r[4]))
              for r in rows_of(record, "attention backward beside cuDNN", ("64", "128"))}
    sparse = [(f"from SFA's rows, k = {k}, against cuDNN dense", "sfa", d) for d, k in ((64, 8), (128, 16))]
    return attention("backward", [1024, 4096, 8192, 16384, 65536], values, sparse)


def decoding_rows(record):
    """(heads, d, B, n) -> {(type, k): (ms, GB/s, cuDNN ms, FA2 ms, bytes)}, in the record's order."""
    shapes = {}
    for line in record["figures"]["decoding beside cuDNN"]:
        m = re.match(r"(dense|sfa)(\w*)\s+(\d+)/\s*(\d+)\s+(.*)", line)
        if not m:
            continue
        d, k, b, n, ms, rate, cudnn, fa2, _, size = m[5].split()
        shapes.setdefault((f"{m[3]}/{m[4]}", d, b, n), {})[m[1] + m[2], int(k)] = (
            float(ms), rate, float(cudnn), float(fa2), float(size))
    return shapes


def size_text(size):
    return f"{size:.3f}".rstrip("0").rstrip(".")


def decoding(record):
    rows = []
    for (heads, d, b, n), kinds in decoding_rows(record).items():
        if n == "1024":
            continue  # a launch's time; the page says so
        shape = f"{heads}, {d}, {b}, {n}"
        for (kind, k), (ms, rate, cudnn, fa2, size) in kinds.items():
            if kind not in ("dense", "sfa") or k > 16:
                continue  # beside the row in bf16, and masks, which have a table of their own
            eight = kinds[kind + "_int8", k]
            rows.append([shape, "dense" if kind == "dense" else f"SFA k={k}", f"{ms:.3f}", rate,
                         f"{cudnn:.3f}" if shape else "", f"{fa2:.3f}" if shape else "", bold_when_ahead(cudnn / ms),
                         size_text(size), f"{eight[0]:.3f}, {cudnn / eight[0]:.2f}, {size_text(eight[4])}"])
            shape = ""
    return table(["heads, d, B, n", "", "ms", "GB/s", "cuDNN ms", "FA2 ms", "ratio", "bytes",
                  "in 8 bits: ms, ratio, bytes"], rows)


def masks(record):
    kinds = decoding_rows(record)["12/12", "64", "32", "32768"]
    cudnn = kinds["dense", 0][2]

    def cell(kind, k):
        if (kind, k) not in kinds:
            return ""
        ms, rate, _, _, size = kinds[kind, k]
        return f"{ms:.3f}, {rate}, {size_text(size)}"

    rows = [[f"k = {k}{', V in 8 bits' if eight else ''}", cell("sfa_numbers" + eight, k), cell("sfa" + eight, k)]
            for k in (28, 38) for eight in ("", "_int8")]
    rows.append(["dense in bf16 / in 8 bits / cuDNN, ms",
                 f"{kinds['dense', 0][0]:.3f} / {kinds['dense_int8', 0][0]:.3f} / {cudnn:.3f}", ""])
    return table(["", "numbers: ms, GB/s, bytes", "mask: ms, GB/s, bytes"], rows)


def ops(record):
    ops_of = {}
    for line in record["figures"]["ops of GPT-2 124M"]:
        m = re.match(r"(.+?)\s+([\d.]+) us\s+(\d+) GB/s\s+([\d.]+) TFLOP/s", line)
        if m:
            ops_of[m[1]] = float(m[2]), int(m[3]) / 1000, float(m[4])

    def row(label, names, between, product):
        of = [ops_of[name] for name in names]
        rates = between.join(f"{tflops:.0f}" if product else f"{rate:.1f}" for _, rate, tflops in of)
        return [label, between.join(f"{us:.0f}" for us, _, _ in of), rates + (" TFLOP/s" if product else " TB/s")]

    def linear(way):
        return [f"linear {way} {name}" for name in ("qkv", "proj", "up", "down")]

    rows = [
        row("residual norm forward / backward", ["residual norm forward", "residual norm backward"], " / ", False),
        row("linear forward: qkv, proj, up with GELU, down", linear("forward"), ", ", True),
        row("linear backward: qkv, proj, up, down with GELU'", linear("backward"), ", ", True),
        row("classifier: loss / loss and gradients", ["classifier loss", "classifier loss and gradients"], " / ", True),
        row("embedding forward / backward", ["embedding forward", "embedding backward"], " / ", False),
        row("select d = 64, k = 8 / 16", ["select d=64 k=8", "select d=64 k=16"], " / ", False),
        row("mask of a gradient, d = 64, k = 8", ["mask gradient d=64 k=8"], "", False),
        row("gradient norm / AdamW, 124M parameters", ["gradient norm", "adamw"], " / ", False),
        row("AdamW with stochastic rounding / with an average of the weights / without masters",
            ["adamw, stochastic rounding", "adamw, average of weights", "adamw, no masters"], " / ", False),
        ["guard: decision over a full window of 128, search for a tensor without an event", f"{ops_of['guard'][0]:.0f}", ""],
    ]
    return table(["op", "time, us", ""], rows)


TABLES = {"attention forward": forward, "attention backward": backward, "decoding": decoding, "masks": masks, "ops": ops}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    record = json.loads((ROOT / "tests/gpu/record.json").read_text())
    stale = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        new = MARK.sub(lambda m: m[1] + TABLES[m[2]](record) + m[3], text)
        if new != text:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(new)
    if check and stale:
        sys.exit(f"tables of another record stand in {', '.join(stale)}: run scripts/bench/record_tables.py")


if __name__ == "__main__":
    main()
