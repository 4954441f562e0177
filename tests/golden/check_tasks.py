#!/usr/bin/env python3
"""Runs lm-evaluation-harness itself over tests/golden/tasks with the model of make_tasks.py and compares every log-likelihood and score with
expected.json, which make_tasks.py computed by rules of its own.

    pip install lm_eval && python3 tests/golden/check_tasks.py
"""
import json
import os
import sys
import tempfile

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

import make_tasks
from make_golden import draw, parameter_shapes, transformers_model

TASKS = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
FILES = {"lambada_openai": "lambada/lambada_openai.yaml", "hellaswag": "hellaswag/hellaswag.yaml", "piqa": "piqa/piqa.yaml",
         "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml"}


def records(name):
    """The records as the harness's data sets have them: ARC flat, labels inside."""
    with open(os.path.join(make_tasks.FOLDER, name + ".jsonl"), encoding="utf-8") as f:
        docs = [json.loads(line) for line in f]
    if name.startswith("arc"):
        for d in docs:
            if isinstance(d["question"], dict):
                q = d["question"]
                d["choices"] = {"text": [c["text"] for c in q["choices"]], "label": [c["label"] for c in q["choices"]]}
                d["question"] = q["stem"]
    if name == "piqa":
        with open(os.path.join(make_tasks.FOLDER, "piqa-labels.lst")) as f:
            for d, label in zip(docs, f):
                d["label"] = int(label)
    if name == "hellaswag":
        for d in docs:
            d["label"] = str(d["label"])
    return docs


def settings(name):
    """The harness's own task, its data set replaced by ours."""
    path = os.path.join(TASKS, FILES[name])
    with open(path) as f:
        text = f.read()
    config = yaml.load(text.replace("!function ", ""), yaml.SafeLoader)
    if "include" in config:
        with open(os.path.join(os.path.dirname(path), config.pop("include"))) as f:
            config = {**yaml.load(f.read().replace("!function ", ""), yaml.SafeLoader), **config}
    if name == "hellaswag":
        sys.path.insert(0, os.path.dirname(path))
        import utils
        config["process_docs"] = utils.process_docs
    file = os.path.join(tempfile.mkdtemp(), name + ".jsonl")
    with open(file, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(d) + "\n" for d in records(name))
    for key in ("dataset_name", "training_split", "test_split", "tag", "group", "fewshot_split"):
        config.pop(key, None)
    return {**config, "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": file}}, "validation_split": "validation",
            "num_fewshot": 0}


def main():
    weights = {name: draw(i, name, shape) for i, (name, shape) in enumerate(parameter_shapes(make_tasks.MODEL))}
    model = transformers_model(make_tasks.MODEL, weights, make_tasks.torch.float32)[0].eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tasks.TOKENIZER, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=make_tasks.MODEL["P"], batch_size=1, device="cpu")
    with open(os.path.join(make_tasks.FOLDER, "expected.json")) as f:
        expected = json.load(f)
    worst = 0.0
    for name in FILES:
        out = lm_eval.simple_evaluate(model=harness, tasks=[settings(name)], log_samples=True, bootstrap_iters=0)
        result, want = out["results"][name], expected[name]
        for key in ("acc", "acc_norm", "perplexity"):
            if key in want:
                assert abs(result[key + ",none"] / want[key] - 1) < 1e-4 if want[key] else result[key + ",none"] == 0, (name, key, result, want[key])
        for sample in out["samples"][name]:
            got = [r[0][0] if isinstance(r[0], (list, tuple)) else r[0] for r in sample["resps"]]
            for a, b in zip(got, want["log_likelihoods"][sample["doc_id"]], strict=True):
                worst = max(worst, abs(a - b))
        print(f"{name}: {({k: v for k, v in result.items() if k != 'alias'})}")
    print(f"lm-evaluation-harness {lm_eval.__version__}: log-likelihoods differ by {worst:.1e} at the most")
    assert worst < 1e-3


if __name__ == "__main__":
    main()
