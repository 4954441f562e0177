"""What transformers makes of folders that `sfa convert --to hf` wrote; for transformers_test.cpp.

    python transformers_check.py JOBS.json RESULTS.json

JOBS.json lists {"folder", "tokens": [T], "logits": [devices][T][V] (ours), "greedy": [n] (ours, after the tokens), "text", "ids" (our ids of the
text, where the folder has a tokenizer)}. Writes one JSON object a job: the largest difference of logits, what transformers generates
with and without its cache, its ids of the text, and whether what it saves again holds the same tensors.
"""
import json
import os
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def tensors_of(folder):
    all = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            all.update(load_file(os.path.join(folder, name)))
    return all


def check(job):
    model = AutoModelForCausalLM.from_pretrained(job["folder"], trust_remote_code=True, dtype=torch.float32).eval()
    tokens = torch.tensor([job["tokens"]])
    with torch.no_grad():
        logits = model(tokens).logits[0]
    result = {"class": type(model).__name__, "difference": (logits - torch.tensor(job["logits"])).abs().amax().item()}
    n = len(job["greedy"])
    for name, cache in (("greedy", True), ("greedy_without_cache", False)):
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, do_sample=False, use_cache=cache, eos_token_id=None)
        result[name] = made[0, tokens.shape[1]:].tolist()
#Left padding must change nothing.
    padded = torch.cat([torch.zeros(1, 3, dtype=tokens.dtype), tokens], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=tokens.dtype), torch.ones_like(tokens)], 1)
    with torch.no_grad():
        there = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[0, 3:]
    result["difference_padded"] = (there - logits).abs().max().item()
    if "ids" in job:
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        result["ids"] = tokenizer(job["text"], add_special_tokens=False)["input_ids"]
        result["text"] = tokenizer.decode(job["ids"])
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        ours, theirs = tensors_of(job["folder"]), tensors_of(again)
        result["same_tensors"] = ours.keys() == theirs.keys() and all(torch.equal(ours[k].float(), theirs[k].float()) for k in ours)
    return result


def main():
    torch.set_num_threads(1)
    results = [check(job) for job in json.load(open(sys.argv[1]))]
    with open(sys.argv[2], "w") as f:
        json.dump(results, f)


if __name__ == "__main__":
    main()
