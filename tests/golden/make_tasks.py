#!/usr/bin/env python3
"""Writes tests/golden/tasks: small files in the published layouts of five zero-shot tasks, and what transformers' GPT2LMHeadModel scores on
them (float64) under the rules of lm-evaluation-harness, for tests/eval to compare with.

    python3 tests/golden/make_tasks.py        # needs torch, transformers, tokenizers, numpy

The weights are those of make_golden.py (Philox, so they are not stored), the tokenizer is tests/tokenizer/golden/small_gpt2.json. The texts
are written for their corners: markup, capitals, double spaces, white space at a context's end, characters of several bytes, labels
as numbers and as text, three to five choices, a context that is longer than the model's positions.
"""
import json
import math
import os
import random
import re

import torch
from tokenizers import Tokenizer

from make_golden import HERE, draw, parameter_shapes, transformers_model

FOLDER = os.path.join(HERE, "tasks")
TOKENIZER = Tokenizer.from_file(os.path.join(HERE, "..", "tokenizer", "golden", "small_gpt2.json"))
END_OF_TEXT = TOKENIZER.token_to_id("<|endoftext|>")
MODEL = dict(C=32, H=2, G=2, Dqk=16, F=64, L=2, V=TOKENIZER.get_vocab_size(), P=96)

HELLASWAG = [
    dict(ind=1, activity_label="Making tea", ctx_a="A woman fills a kettle.", ctx_b="she", label=2,
         endings=["throws it out of the window.", "sings to the  cat.", "waits until the water boils.", "paints a wall [substeps] in red."]),
    dict(ind=2, activity_label="How to tie a knot", ctx_a="[header] How to tie a knot [title] Take a rope. [step] Hold both ends.",
         ctx_b="the Left end goes OVER the right", label="0",
         endings=["[step] Pull it through and tighten.", "Eat it.", "Leave the room [title] Then sleep.", "  Burn the rope.  "]),
    dict(ind=3, activity_label="Fahrrad", ctx_a="Über die Brücke fährt ein Rad.", ctx_b="éCLAIR und ÖL", label=1,
         endings=["liegen da [unclosed", "fallen herunter.", "a]b[c]d", "\u2026und tsch\u00fcss!"]),
    dict(ind=4, activity_label="Reading", ctx_a="A man reads.", ctx_b="", label=3,
         endings=["One.", "Two two.", "Three three three.", "Four four four four."]),
]
PIQA = [
    (dict(goal="How do I open a jar?", sol1="Turn the lid.", sol2="Turn the table and the room around it."), 0),
    (dict(goal="Keep bread fresh ", sol1="put it in the rain", sol2="put it in a box"), 1),
    (dict(goal="Naïve question:\n", sol1="日本語", sol2="a key, and values"), 1),
    (dict(goal=" ".join(["stir the sum"] * 40), sol1="again", sol2="never"), 0),
]
ARC_EASY = [
    dict(id="a", question=dict(stem="Which meets a key?", choices=[dict(text="query", label="A"), dict(text="a stone", label="B"),
                                                                  dict(text="the colour of the sea", label="C"), dict(text="none", label="D")]),
         answerKey="A"),
    dict(id="b", question=dict(stem="What is 2 + 2?", choices=[dict(text="3", label="1"), dict(text="4", label="2"), dict(text="22", label="3")]),
         answerKey="2"),
    dict(id="c", question=dict(stem="Pick E.", choices=[dict(text=t, label=l) for t, l in zip(["one", "two words", "three of them", "4", "five"], "ABCDE")]),
         answerKey="E"),
]
ARC_CHALLENGE = [
    dict(id="d", question="What is sparse?", choices=dict(text=["a feature", "the whole", "everything that is"], label=["A", "B", "C"]), answerKey="B"),
    dict(id="e", question="Which is longer?", choices=dict(text=["a mile", "an inch", "a day", "a metre"], label=["1", "2", "3", "4"]), answerKey="2"),
]


def make_model():
    weights = {name: draw(i, name, shape).double() for i, (name, shape) in enumerate(parameter_shapes(MODEL))}
    return transformers_model(MODEL, weights, torch.float64)[0].eval()


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@torch.no_grad()
def loglikelihood(model, context, continuation):
    """Sum over the continuation's tokens, and whether greedy decoding gives them; one request at a time, no padding."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    if context == "":
        front, back = [END_OF_TEXT], encode(continuation)
    else:
        front, whole = encode(context), encode(context + continuation)
        back = whole[len(front):]
    fed = (front + back)[-(MODEL["P"] + 1):][:-1]
    logits = model(torch.tensor([fed])).logits[0].log_softmax(-1)[len(fed) - len(back):]
    chosen = logits.gather(1, torch.tensor(back)[:, None]).sum().item()
    return chosen, logits.argmax(-1).tolist() == back


def cleaned(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub("\\[.*?\\]", "", text).replace("  ", " ")


def hellaswag(doc):
    query = cleaned(doc["activity_label"] + ": " + doc["ctx_a"] + " " + doc["ctx_b"].capitalize())
    return query, [cleaned(e) for e in doc["endings"]], int(doc["label"])


def piqa(doc, label):
    return f"Question: {doc['goal']}\nAnswer:", [doc["sol1"], doc["sol2"]], label


def arc(doc):
    nested = isinstance(doc["question"], dict)
    if nested:
        texts, labels = [c["text"] for c in doc["question"]["choices"]], [c["label"] for c in doc["question"]["choices"]]
    else:
        texts, labels = doc["choices"]["text"], doc["choices"]["label"]
    return f"Question: {doc['question']['stem'] if nested else doc['question']}\nAnswer:", texts, labels.index(doc["answerKey"])


def choices(model, docs):
    items, hits, hits_norm = [], 0, 0
    for context, texts, gold in docs:
        values = [loglikelihood(model, context, " " + t)[0] for t in texts]
        by_length = [v / len(t) for v, t in zip(values, texts)]
        hits += values.index(max(values)) == gold
        hits_norm += by_length.index(max(by_length)) == gold
        items.append(values)
    return dict(acc=hits / len(docs), acc_norm=hits_norm / len(docs), log_likelihoods=items)


def lambada_texts(model):
    """Passages of random words; some end in the word that the model finds likeliest, some in another."""
    rng = random.Random(3)
    words = ["the", "query", "meets", "a", "key", "and", "values", "sum", "sparse", "features", "over", "it"]
    texts = ["One word", "No hits here, not in the  end", "Zwei Sätze. Über das Öl"]
    while len(texts) < 9:
        context = " ".join(rng.choice(words) for _ in range(rng.randrange(5, 16)))
        with torch.no_grad():
            best = model(torch.tensor([encode(context)[-MODEL["P"]:]])).logits[0, -1].argmax().item()
        word = TOKENIZER.decode([best])
        if re.fullmatch(" [a-z]{2,}", word) and encode(context + word) == encode(context) + [best]:
            texts.append(context + word)
    return texts


def main():
    os.makedirs(FOLDER, exist_ok=True)
    model = make_model()

    def write(name, records):
        with open(os.path.join(FOLDER, name), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)

    texts = lambada_texts(model)
    write("lambada_openai.jsonl", [dict(text=t) for t in texts])
    write("hellaswag.jsonl", HELLASWAG)
    write("piqa.jsonl", [doc for doc, _ in PIQA])
    with open(os.path.join(FOLDER, "piqa-labels.lst"), "w") as f:
        f.writelines(f"{label}\n" for _, label in PIQA)
    write("arc_easy.jsonl", ARC_EASY)
    write("arc_challenge.jsonl", ARC_CHALLENGE)

    scored = [loglikelihood(model, t.rsplit(" ", 1)[0], " " + t.rsplit(" ", 1)[1]) for t in texts]
    values, greedy = [v for v, _ in scored], [g for _, g in scored]
    assert 0 < sum(greedy) < len(greedy)
    expected = dict(lambada_openai=dict(acc=sum(greedy) / len(greedy), perplexity=math.exp(-sum(values) / len(values)), greedy=greedy,
                                        log_likelihoods=[[v] for v in values]),
                    hellaswag=choices(model, [hellaswag(d) for d in HELLASWAG]),
                    piqa=choices(model, [piqa(d, label) for d, label in PIQA]),
                    arc_easy=choices(model, [arc(d) for d in ARC_EASY]),
                    arc_challenge=choices(model, [arc(d) for d in ARC_CHALLENGE]))
    with open(os.path.join(FOLDER, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
    print({k: {n: v for n, v in e.items() if isinstance(v, float)} for k, e in expected.items()})


if __name__ == "__main__":
    main()
