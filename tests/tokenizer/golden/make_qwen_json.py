"""Qwen3's tokenizer.json out of qwen.tiktoken, as transformers' converter makes it: merges from ranks, and 26 added tokens.

    python make_qwen_json.py qwen.tiktoken OUT/tokenizer.json [CASES.json]      # needs the package tokenizers

With CASES.json (cases.json beside this script) the package's ids of every text are compared with those recorded there for "qwen".
"""
import base64
import json
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from make_golden import QWEN

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
         "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
         "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
         "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]


def last_two(token, ranks):
    """The two parts that become `token` when its bytes are merged by lower ranks alone."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return parts


def main():
    ranks = dict((base64.b64decode(a), int(b)) for a, b in map(bytes.split, open(sys.argv[1], "rb")))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet, next_one = {}, 256
    for b in range(256):
        alphabet[b] = chr(b) if b in printable else chr(next_one)
        next_one += b not in printable
    text = lambda token: "".join(alphabet[b] for b in token)
    merges = [tuple(map(text, last_two(token, ranks))) for token in sorted(ranks, key=ranks.get) if len(token) > 1]
    t = Tokenizer(models.BPE({text(token): rank for token, rank in ranks.items()}, merges))
    t.normalizer, t.decoder = normalizers.NFC(), decoders.ByteLevel()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.add_special_tokens([AddedToken(name, normalized=False) for name in ADDED])
    t.save(sys.argv[2], pretty=False)
    if len(sys.argv) > 3:
        for case in json.load(open(sys.argv[3])):
            if "ids" in case:
                assert t.encode(case["text"], add_special_tokens=False).ids == case["ids"]["qwen"], case["text"]


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
