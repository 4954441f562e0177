"""Golden token ids from the `tokenizers` and `tiktoken` packages, for bpe_tokenizer_test.cpp.

    python make_golden.py [TOKENIZERS]

Writes small_gpt2.json and small_qwen.json (some 430 ids, all that the texts below give), small_vocab/{vocab.json,merges.txt}, training.json (the texts, to be
read 20 times), and cases.json: hostile
texts with the ids that the packages make of them. TOKENIZERS is a folder with gpt2/{vocab.json,merges.txt} and qwen/qwen.tiktoken; with
it the ids of these vocabularies are recorded, too.
"""
import base64, json, os, random, sys, unicodedata
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TRAINING = [
    "The tokenizer doesn't know what it will read; it's trained on a few sentences that we've made up, and they'll do.",
    "int main(int argc, char** argv) {\n    return argc > 1 ? 0 : 1;  // 12345 times\n}\n\n\n",
    "Gr\u00fc\u00dfe aus K\u00f6ln, \u00e7a va? \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u4f60\u597d\uff0c\u4e16\u754c\u3002 \u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \U0001F600\U0001F680 100 % 3.14159",
] * 20

FIXED = [
    "", " ", "a", "\n", "\x00", "\x00\x01\x1f\x7f",
    "Hello, world! It's 12345 o'clock; we'll see, they've gone, I'm here, you're there, he'd know.",
    "IT'S WE'LL THEY'VE I'M YOU'RE HE'D 'S 'Ll 'rE", "'\u017f '\u212a x'\u017fy", "can\u2019t won\u2019t \u201cquotes\u201d",
    "   leading", "trailing   ", "a  b   c    d", "\t\ttabs\t \tand\n\n\n  \r\n\r\nnewlines\r\r \n x", " \n \n \n", "x\u00a0y\u2003z\u3000w",
    "a\u0085b \u0085 c", "a\u180eb \u180e c", "zero\u200bwidth \ufeffbom \u2060joiner \u200dzwj \u200c", "\u2028\u2029 x\u2028y",
    "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 \U0001F1E9\U0001F1EA\U0001F1EB\U0001F1F7 \u2764\ufe0f \U0001F44D\U0001F3FD \U0001FAE0",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u1112\u1161\u11ab\u1100\u1173\u11af \u1100\u1161",
    "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 \u0628\u0650\u0627\u0644\u0639\u064e\u0627\u0644\u064e\u0645\u0650 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "e\u0301 \u00e9 a\u030a\u0323 A\u030a \u212b \u1e9b\u0323 \ufb01 q\u0307\u0323 1\u0301 '\u0301s .\u0338", "\u0301\u0302 start", "o\u0302\u0301 \u1ed1 \u0344 \u2126 \u0958",
    "\u00bd \u00b2\u00b3 \u0661\u0662\u0663 \u2163 \u3007 \U0001D7D8 1\u00bd2", "\u01c5 \u02b0 \u00aa \u1d2c \ua9cf", "1234567890 3.14 1,000,000 0x1F 2\u00b2",
    "<a href=\"x\">\u00a9 & \u00ae</a>\r\n\t#define F(x) ((x)->y[0]++)\n", "!!!???...---===***", "....\n....\r\n....", "\u2014\u2014 \u2026 \u00bf\u00a1",
    "\U00010000\U0010FFFF \ue000\uf8ff \ufffd\uffff \U000E0041", "supercalifragilisticexpialidocious" * 4, "ab" * 40 + " " + "x" * 49 + " " + "y" * 48,
]
REPEATED = [["a", 100000], [" ", 100000], ["ab", 60000], ["\u4e16", 30000], ["\n", 50000], [" \n", 30000], ["x ", 50000], ["e\u0301", 20000],
            ["\U0001F600", 20000], ["1", 50000], ["!?", 30000]]
ALPHABET = ("abcdefgh ABC   123 '\"!?.,-\n\r\t\u00e9\u00df\u0416\u4e2d\u3042\uac00\u0627\u05d0\u0301\u0323\u200d\u00a0\u3000\U0001F600\U0001F468\u00bd\u0661" * 2
            + "abcdefghijklmnopqrstuvwxyz ")


def small(pre, normalizer):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                        show_progress=False, special_tokens=["<|endoftext|>"]))
    return t


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        h = ((h ^ i) * 0x100000001B3) % 2**64
    return "%016x" % h


def main():
    with open(f"{HERE}/training.json", "w") as f:
        json.dump(TRAINING[:3], f)
    encoders = {}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t = small(byte_level, None)
    saved = json.loads(t.to_str())
    saved["model"]["merges"] = [" ".join(m) for m in saved["model"]["merges"]]  # the older spelling
    with open(f"{HERE}/small_gpt2.json", "w") as f:
        json.dump(saved, f)
    os.makedirs(f"{HERE}/small_vocab", exist_ok=True)
    t.model.save(f"{HERE}/small_vocab")
    encoders["small_gpt2"] = lambda s, t=t: t.encode(s, add_special_tokens=False).ids
    t = small(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), normalizers.NFC())
    t.save(f"{HERE}/small_qwen.json", pretty=False)
    encoders["small_qwen"] = lambda s, t=t: t.encode(s, add_special_tokens=False).ids
    if len(sys.argv) > 1:
        g = Tokenizer(models.BPE.from_file(f"{sys.argv[1]}/gpt2/vocab.json", f"{sys.argv[1]}/gpt2/merges.txt"))
        g.pre_tokenizer = byte_level
        encoders["gpt2"] = lambda s: g.encode(s, add_special_tokens=False).ids
        ranks = dict((base64.b64decode(a), int(b)) for a, b in map(bytes.split, open(f"{sys.argv[1]}/qwen/qwen.tiktoken", "rb")))
        q = tiktoken.Encoding("qwen", pat_str=QWEN, mergeable_ranks=ranks, special_tokens={})
        encoders["qwen"] = lambda s: q.encode_ordinary(unicodedata.normalize("NFC", s))
    rng = random.Random(7)
    texts = FIXED + ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, 60))) for _ in range(60)]
    cases = [{"text": s, "ids": {n: e(s) for n, e in encoders.items()}} for s in texts]
    for s, n in REPEATED:
        ids = {name: e(s * n) for name, e in encoders.items()}
        cases.append({"text": s, "repeat": n, "count": {k: len(v) for k, v in ids.items()}, "fnv": {k: fnv(v) for k, v in ids.items()}})
    with open(f"{HERE}/cases.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
