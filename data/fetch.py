#!/usr/bin/env python3
"""Downloads files of a dataset on the Hugging Face Hub, resumably, and checks each against the SHA-256 that the Hub records for it.

    python3 data/fetch.py monology/pile-uncopyrighted 'train/0*.jsonl.zst' --to corpora/pile
    python3 data/fetch.py HuggingFaceFW/fineweb 'sample/10BT/*.parquet' --to corpora/fineweb --list

Needs nothing but Python. A file that is there with the right size and hash is left alone; an interrupted download goes on. HF_ENDPOINT
names another server, HF_TOKEN a token for gated datasets.
"""
import argparse, fnmatch, hashlib, json, os, re, sys, time, urllib.error, urllib.parse, urllib.request

ENDPOINT = os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def open_url(url, first_byte=0):
    request = urllib.request.Request(url)
    if first_byte:
        request.add_header("Range", f"bytes={first_byte}-")
    if os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", "Bearer " + os.environ["HF_TOKEN"])
    return urllib.request.urlopen(request, timeout=60)


def listing(dataset, revision, pattern):
    """(path, size, sha256 or None) of the files whose path matches."""
    folder = pattern.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
    url = f"{ENDPOINT}/api/datasets/{dataset}/tree/{revision}/{urllib.parse.quote(folder)}?recursive=true"
    while url:
        with open_url(url) as answer:
            entries = json.load(answer)
            following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
        for entry in entries:
            if entry["type"] == "file" and fnmatch.fnmatchcase(entry["path"], pattern):
                yield entry["path"], entry["size"], entry.get("lfs", {}).get("oid")
        url = following.group(1) if following else None


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def whole(path, size, sha256):
    return os.path.exists(path) and os.path.getsize(path) == size and (sha256 is None or sha256_of(path) == sha256)


def download(url, target, size, sha256):
    part = target + ".part"
    for attempt in range(5):
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if have > size:
            os.remove(part)
            have = 0
        try:
            if have < size:
                with open_url(url, have) as answer:
                    if have and answer.status != 206:  # the server begins anew
                        have = 0
                    with open(part, "r+b" if have else "wb") as f:
                        f.seek(have)
                        for block in iter(lambda: answer.read(1 << 20), b""):
                            f.write(block)
            if whole(part, size, sha256):
                os.replace(part, target)
                return
            if os.path.getsize(part) >= size:
                os.remove(part)  # complete, but not what the Hub says it is
            reason = "the size or hash is not what the Hub records"
        except (urllib.error.URLError, OSError) as error:
            reason = str(error)
        print(f"{target}: {reason}; attempt {attempt + 1} of 5", file=sys.stderr)
        time.sleep(2**attempt)
    sys.exit(f"fetch.py: {target} could not be downloaded")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="owner/name")
    parser.add_argument("pattern", help="paths in the dataset, with *, ? and [...]")
    parser.add_argument("--to", default="corpora", help="folder to download to")
    parser.add_argument("--revision", default="main", help="a commit of the dataset, to get the same files again")
    parser.add_argument("--list", action="store_true", help="print size, SHA-256 and path, download nothing")
    arguments = parser.parse_args()
    try:
        files = sorted(listing(arguments.dataset, arguments.revision, arguments.pattern))
    except (urllib.error.URLError, OSError) as error:
        sys.exit(f"fetch.py: {arguments.dataset} could not be listed: {error}")
    if not files:
        sys.exit(f"fetch.py: no file of {arguments.dataset} matches {arguments.pattern}")
    for path, size, sha256 in files:
        if arguments.list:
            print(f"{size:>14} {sha256 or '-':64} {path}")
            continue
        target = os.path.join(arguments.to, os.path.basename(path))
        os.makedirs(arguments.to, exist_ok=True)
        if whole(target, size, sha256):
            print(f"{target}: there already")
            continue
        url = f"{ENDPOINT}/datasets/{arguments.dataset}/resolve/{arguments.revision}/{urllib.parse.quote(path)}"
        download(url, target, size, sha256)
        print(f"{target}: {size} bytes{', hash checked' if sha256 else ''}")


if __name__ == "__main__":
    main()
