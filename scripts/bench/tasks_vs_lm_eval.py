#!/usr/bin/env python3
"""Zero-shot tasks: `sfa eval` against lm-evaluation-harness itself, on the same model and files: every score and every log-likelihood.

    pip install lm_eval torch transformers
    sfa convert RUN hf_model --to hf
    python3 scripts/bench/tasks_vs_lm_eval.py --sfa build/cpu/sfa --checkpoint RUN --hf hf_model --files DIR    # NAME.jsonl in DIR for each task
    python3 scripts/bench/tasks_vs_lm_eval.py --golden    # tests/golden/tasks/expected.json, which make_tasks.py computed by rules of its own

Ends with 1 when a score differs or a log-likelihood is more than 1e-3 apart. Runs on the CPU in float32.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "golden")
FILES = {"lambada_openai": "lambada/lambada_openai.yaml", "hellaswag": "hellaswag/hellaswag.yaml", "piqa": "piqa/piqa.yaml",
         "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml"}


def records(folder, name):
    """The records as the harness's data sets have them: ARC flat, labels inside."""
    with open(os.path.join(folder, name + ".jsonl"), encoding="utf-8") as f:
        docs = [json.loads(line) for line in f]
    if name.startswith("arc"):
        for d in docs:
            if isinstance(d["question"], dict):
                q = d["question"]
                d["choices"] = {"text": [c["text"] for c in q["choices"]], "label": [c["label"] for c in q["choices"]]}
                d["question"] = q["stem"]
    if name == "piqa" and "label" not in docs[0]:
        with open(os.path.join(folder, "piqa-labels.lst")) as f:
            for d, label in zip(docs, f):
                d["label"] = int(label)
    if name == "hellaswag":
        for d in docs:
            d["label"] = str(d["label"])
    return docs


def settings(folder, name, limit):
    """The harness's own task, its data set replaced by ours."""
    path = os.path.join(os.path.dirname(lm_eval.__file__), "tasks", FILES[name])
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
        f.writelines(json.dumps(d) + "\n" for d in records(folder, name)[:limit or None])
    for key in ("dataset_name", "training_split", "test_split", "tag", "group", "fewshot_split"):
        config.pop(key, None)
    return {**config, "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": file}}, "validation_split": "validation",
            "num_fewshot": 0}


def golden_model():
    sys.path.insert(0, TESTS)
    import make_tasks
    from make_golden import draw, parameter_shapes, transformers_model
    weights = {name: draw(i, name, shape) for i, (name, shape) in enumerate(parameter_shapes(make_tasks.MODEL))}
    model = transformers_model(make_tasks.MODEL, weights, make_tasks.torch.float32)[0].eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tasks.TOKENIZER, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    with open(os.path.join(make_tasks.FOLDER, "expected.json")) as f:
        expected = json.load(f)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=make_tasks.MODEL["P"], batch_size=1, device="cpu"), expected


def ours(arguments, name):
    """The same shape as expected.json, from the program."""
    command = [arguments.sfa, "eval", name, "--checkpoint", arguments.checkpoint, "--file", os.path.join(arguments.files, name + ".jsonl"), "--json",
               "--device", "cpu", "--dtype", "fp32", "--limit", str(arguments.limit)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**result, "log_likelihoods": [item["log_likelihoods"] for item in result["items"]]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--sfa", default="build/cpu/sfa")
    parser.add_argument("--checkpoint")
    parser.add_argument("--hf")
    parser.add_argument("--files")
    parser.add_argument("--limit", type=int, default=0)
    arguments = parser.parse_args()
    global lm_eval, yaml, HFLM, PreTrainedTokenizerFast  # behind the command line, so that --help needs none of them
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast
    if arguments.golden:
        harness, expected = golden_model()
        folder = os.path.join(TESTS, "tasks")
    else:
        if not (arguments.checkpoint and arguments.hf and arguments.files):
            parser.error("--golden, or --checkpoint, --hf and --files")
        folder = arguments.files
        harness = HFLM(pretrained=arguments.hf, dtype="float32", batch_size=8, device="cpu")
        expected = {name: ours(arguments, name) for name in FILES if os.path.exists(os.path.join(folder, name + ".jsonl"))}
    worst, wrong = 0.0, []
    for name, want in expected.items():
        out = lm_eval.simple_evaluate(model=harness, tasks=[settings(folder, name, arguments.limit)], log_samples=True, bootstrap_iters=0)
        result, far = out["results"][name], 0.0
        for sample in out["samples"][name]:
            got = [r[0][0] if isinstance(r[0], (list, tuple)) else r[0] for r in sample["resps"]]
            for a, b in zip(got, want["log_likelihoods"][sample["doc_id"]], strict=True):
                far = max(far, abs(a - b))
        worst = max(worst, far)
        shown = []
        for key in ("acc", "acc_norm", "perplexity"):
            if key not in want:
                continue
            theirs = result[key + ",none"]
            shown.append(f"{key} {want[key]:.6g} / {theirs:.6g}")
            if abs(theirs - want[key]) > (1e-3 * want[key] if key == "perplexity" else 1e-9):
                wrong.append(f"{name} {key}")
        print(f"{name:<16} {len(want['log_likelihoods']):>6} examples   ours / theirs: {', '.join(shown)}   log-likelihoods within {far:.1e}")
    print(f"lm-evaluation-harness {lm_eval.__version__}: log-likelihoods differ by {worst:.1e} at the most; scores that differ: {', '.join(wrong) or 'none'}")
    sys.exit(1 if wrong or worst > 1e-3 else 0)


if __name__ == "__main__":
    main()
