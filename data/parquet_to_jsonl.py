#!/usr/bin/env python3
"""Writes a column of Parquet files as JSON lines to standard output, for `sfa data tokenize --format jsonl -`.

    python3 data/parquet_to_jsonl.py corpora/fineweb/*.parquet | sfa data tokenize --format jsonl --output data/fineweb.h5 -

Needs pyarrow (pip install pyarrow). Reads a batch of rows at a time. --column names another column than "text".
"""
import argparse, json, os, sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--column", default="text")
    arguments = parser.parse_args()
    try:
        import pyarrow.parquet
    except ImportError:
        sys.exit("parquet_to_jsonl.py: pyarrow is missing: pip install pyarrow")
    try:
        for path in sorted(arguments.files):
            file = pyarrow.parquet.ParquetFile(path)
            if arguments.column not in file.schema_arrow.names:
                sys.exit(f"parquet_to_jsonl.py: {path} has no column '{arguments.column}', it has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=1024, columns=[arguments.column]):
                for text in batch.column(0).to_pylist():
                    if text:
                        sys.stdout.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has given up and says why itself
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
