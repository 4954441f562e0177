#!/usr/bin/env python3
"""Writes the tokens of a token file (`sfa data tokenize`, GPT-2's tokenizer) as a shard that llm.c reads: 256 int32 of header (20240520, 1, number of
tokens), then the tokens as uint16.
  scripts/bench/llmc_shard.py DATA.h5 OUT.bin [FIRST [COUNT]]
"""
import sys

MOST = 1 << 20  # tokens at a time


def main():
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    import h5py
    import numpy as np
    with h5py.File(sys.argv[1]) as f:
        tokens = f["tokens"]
        first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
        last = min(len(tokens), first + int(sys.argv[4])) if len(sys.argv) > 4 else len(tokens)
        if not 0 <= first < last:
            sys.exit(f"{sys.argv[1]}: holds {len(tokens)} tokens, none from {first} to {last}")
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, last - first
        with open(sys.argv[2], "wb") as out:
            out.write(header.tobytes())
            for begin in range(first, last, MOST):
                part = np.asarray(tokens[begin : min(last, begin + MOST)])
                if part.max() >= 1 << 16:
                    sys.exit(f"{sys.argv[1]}: holds the token {part.max()}; llm.c's shards hold 16 bits")
                out.write(part.astype("<u2").tobytes())


main()
