#!/usr/bin/env python3
"""Writes the golden files beside this script: what PyTorch and transformers compute, for tests/models and tests/ops to compare with.

    python3 tests/golden/make_golden.py            # needs torch, transformers, numpy; CPU; about a minute

Everything runs in float64, so that the files hold the exact answer to far below the tolerances of the tests; the losses of the same
runs in PyTorch's float32 are kept beside them. Weights are not stored: both sides draw them from Philox4x32-10 (src/core/rng.h).

Format of a file, little-endian: "sfagold1", u32 count, then for each tensor: u32 length of the name, the name, u32 type (0 = f32,
1 = i32), u32 rank, u32 dimensions, the elements.
"""
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, WARMUP, LR, MIN_LR = 10, 3, 3e-3, 3e-4
BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
PURPOSE_TEST, SEED = 100, 1234


def philox(index, blocks):
    """[n, 4] uint32: ten rounds with counter (index lo, index hi, block, purpose) and key SEED."""
    c = [np.full(len(blocks), index & 0xFFFFFFFF, np.uint64), np.full(len(blocks), index >> 32, np.uint64),
         np.asarray(blocks, np.uint64), np.full(len(blocks), PURPOSE_TEST, np.uint64)]
    k = [SEED & 0xFFFFFFFF, SEED >> 32]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k[0]), p1 & mask, (p0 >> shift) ^ c[3] ^ np.uint64(k[1]), p0 & mask]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, 1).astype(np.uint32)


def normal(n, stream):
    """normal_at(SEED, kPurposeTest, stream, i) for i < n, float32."""
    r = philox(stream, np.arange((n + 3) // 4)).astype(np.float64)
    u, w = (r[:, 0::2] + 0.5) / 2**32, (r[:, 1::2] + 0.5) / 2**32
    radius, angle = np.sqrt(-2.0 * np.log(u)), 6.283185307179586 * w
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(-1)[:n].astype(np.float32)


def write(name, tensors):
    path = os.path.join(HERE, name)
    with open(path, "wb") as f:
        f.write(b"sfagold1" + struct.pack("<I", len(tensors)))
        for key, value in tensors.items():
            value = np.asarray(value.detach() if torch.is_tensor(value) else value)
            integer = np.issubdtype(value.dtype, np.integer)
            f.write(struct.pack("<I", len(key)) + key.encode() + struct.pack("<II", 1 if integer else 0, value.ndim))
            f.write(struct.pack(f"<{value.ndim}I", *value.shape) + value.astype("<i4" if integer else "<f4").tobytes())
    print(f"{name}: {os.path.getsize(path)} bytes")


# ---------------------------------------------------------------------------------------------------------------- attention
def select(x, k, two_of_four=False):
    """Rows of x with zeros outside the k largest |x|; two_of_four: greedily, at most two of four neighbours."""
    if not two_of_four:
        keep = torch.zeros_like(x).scatter_(-1, x.abs().topk(k, -1).indices, 1)
        return x * keep
    order = torch.argsort(x.detach().abs(), dim=-1, descending=True, stable=True)
    keep, used = torch.zeros_like(x), torch.zeros(*x.shape[:-1], x.shape[-1] // 4, dtype=x.dtype)
    taken = torch.zeros(*x.shape[:-1], 1, dtype=x.dtype)
    for n in range(x.shape[-1]):
        d = order[..., n:n + 1]
        free = ((used.gather(-1, d // 4) < 2) & (taken < k)).to(x.dtype)
        keep.scatter_(-1, d, free)
        used.scatter_add_(-1, d // 4, free)
        taken += free
    return x * keep


MARGIN = [math.inf]  # smallest relative gap between a chosen and a left-out magnitude: a flipped choice would not be an error


def note_margin(x, k):
    if k < x.shape[-1]:
        top = x.detach().abs().topk(k + 1, -1).values
        MARGIN[0] = min(MARGIN[0], float(((top[..., k - 1] - top[..., k]) / top[..., k - 1]).min()))


def attention(c, q, k, v, first_key):
    """q [B,H,T,Dqk], k [B,G,T,Dqk], v [B,G,T,Dv] -> [B,H,T,Dv]; Eq. 3-6 of arXiv 2603.22300 where c has k_q."""
    T = q.shape[2]
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    visible = (j <= i)[None]
    if c.get("window"):
        visible = visible & (j > i - c["window"])
    if first_key is not None:
        visible = visible & (j >= first_key[:, :, None])
    visible = visible[:, None]
    if c.get("k_q"):
        note_margin(q, c["k_q"])
        note_margin(k, c["k_k"])
        q, k = select(q, c["k_q"], c.get("two_of_four", False)), select(k, c["k_k"])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if c.get("mask"):
        shared = (q != 0).to(q.dtype) @ (k != 0).to(q.dtype).transpose(-1, -2) > 0
        visible = visible & (shared | (i == j))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~visible, -math.inf).softmax(-1) @ v


# -------------------------------------------------------------------------------------------------------------------- model
def parameter_shapes(c):
    """Our parameters in our order (src/models/gpt2/gpt2.cpp); the vocabulary is not padded here."""
    C, H, G, Dqk, Dv, inner = c["C"], c["H"], c["G"], c["Dqk"], c["C"] // c["H"], c["F"]
    row = (H + G) * Dqk + G * Dv
    shapes = [("wte.weight", (c["V"], C)), ("wpe.weight", (c["P"], C))]
    for l in range(c["L"]):
        h = f"h.{l}."
        shapes += [(h + "attn.qkv.weight", (row, C)), (h + "attn.proj.weight", (C, H * Dv)), (h + "mlp.up.weight", (inner, C)),
                   (h + "mlp.down.weight", (C, inner)), (h + "norm1.weight", (C,)), (h + "norm1.bias", (C,)),
                   (h + "attn.qkv.bias", (row,)), (h + "attn.proj.bias", (C,)), (h + "norm2.weight", (C,)),
                   (h + "norm2.bias", (C,)), (h + "mlp.up.bias", (inner,)), (h + "mlp.down.bias", (C,))]
    return shapes + [("norm_f.weight", (C,)), ("norm_f.bias", (C,))]


def draw(number, name, shape):
    """Matrices 0.12 n, biases 0.1 n, norm weights 1 + 0.1 n: nothing is zero or one, so that no gradient hides."""
    n = normal(math.prod(shape), number)
    if len(shape) == 2:
        n = np.float32(0.12) * n
    else:
        n = np.float32(0.1) * n + np.float32(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return torch.from_numpy(n.reshape(shape))


def functional_logits(c, p, tokens, first_key):
    B, T = tokens.shape
    H, G, Dqk, Dv, C = c["H"], c["G"], c["Dqk"], c["C"] // c["H"], c["C"]
    norm = lambda x, name: F.layer_norm(x, (C,), p[name + ".weight"], p[name + ".bias"], 1e-5)
    linear = lambda x, name: F.linear(x, p[name + ".weight"], p[name + ".bias"])
    x = p["wte.weight"][tokens] + p["wpe.weight"][:T]
    for l in range(c["L"]):
        h = f"h.{l}."
        qkv = linear(norm(x, h + "norm1"), h + "attn.qkv")
        q, k, v = qkv.split([H * Dqk, G * Dqk, G * Dv], -1)
        heads = lambda t, n: t.view(B, T, n, -1).transpose(1, 2)
        o = attention(c, heads(q, H), heads(k, G), heads(v, G), first_key)
        x = x + linear(o.transpose(1, 2).reshape(B, T, H * Dv), h + "attn.proj")
        x = x + linear(F.gelu(linear(norm(x, h + "norm2"), h + "mlp.up"), approximate="tanh"), h + "mlp.down")
    return norm(x, "norm_f") @ p["wte.weight"].T


HF_NAMES = {"attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj", "norm1": "ln_1",
            "norm2": "ln_2", "norm_f": "ln_f"}


def transformers_model(c, weights, dtype):
    """GPT2LMHeadModel with our weights; returns it and {our name: (its parameter, transposed)}."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def core(module, q, k, v, attention_mask=None, **unused):
        return attention(c, q, k, v, None).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("golden", core)
    config = GPT2Config(vocab_size=c["V"], n_positions=c["P"], n_embd=c["C"], n_layer=c["L"], n_head=c["H"], n_inner=c["F"],
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new", attn_implementation="golden",
                        bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).to(dtype)
    theirs = dict(model.named_parameters())
    table = {}
    for name, value in weights.items():
        hf = name
        for ours, other in HF_NAMES.items():
            hf = hf.replace(ours, other)
        transpose = any(s in name for s in ("attn.qkv.w", "attn.proj.w", "mlp.up.w", "mlp.down.w"))
        table[name] = (theirs.pop("transformer." + hf), transpose)
        with torch.no_grad():
            table[name][0].copy_(value.T if transpose else value)
    assert not theirs, f"parameters without a counterpart: {list(theirs)}"
    return model, table


def batches(c):
    """[STEPS, B, T] tokens, targets (-1 = not counted) and first keys."""
    rng = np.random.default_rng(7)
    text = rng.integers(0, c["V"], (STEPS, c["B"], c["T"] + 1))
    text[..., 1:][rng.random((STEPS, c["B"], c["T"])) < 0.5] = 5  # something to learn
    tokens, targets = text[..., :-1].copy(), text[..., 1:].copy()
    if c.get("ignore"):
        targets[rng.random(targets.shape) < 0.2] = -1
    first = None
    if c.get("documents"):
        start = np.zeros(tokens.shape, np.int64)
        breaks = rng.random(tokens.shape) < 0.15
        for t in range(1, c["T"]):
            start[..., t] = np.where(breaks[..., t], t, start[..., t - 1])
        first = start
    return tokens, targets, first


def lr_at(step):
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    p = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * p)) / 2


def train(c, dtype, with_transformers):
    """Losses and gradient norms of the steps, gradients of the first."""
    weights = {name: draw(i, name, shape).to(dtype) for i, (name, shape) in enumerate(parameter_shapes(c))}
    tokens, targets, first = batches(c)
    if with_transformers:
        model, table = transformers_model(c, weights, dtype)
        logits = lambda t, f: model(t).logits
        params = {name: parameter for name, (parameter, _) in table.items()}
    else:
        params = {name: w.clone().requires_grad_() for name, w in weights.items()}
        logits = lambda t, f: functional_logits(c, params, t, f)
    optimizer = torch.optim.AdamW([{"params": [p for p in params.values() if p.ndim == 2], "weight_decay": DECAY},
                                   {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0}],
                                  lr=LR, betas=BETAS, eps=EPS)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        first_key = None if first is None else torch.from_numpy(first[step])
        out = logits(torch.from_numpy(tokens[step]), first_key)
        loss = F.cross_entropy(out.view(-1, c["V"]), torch.from_numpy(targets[step]).view(-1), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in params.items():
                transposed = with_transformers and table[name][1]
                gradients[name] = (parameter.grad.T if transposed else parameter.grad).detach().clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(params.values()), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, gradients


def model_golden(name, c, with_transformers):
    MARGIN[0] = math.inf
    losses, norms, gradients = train(c, torch.float64, with_transformers)
    margin = MARGIN[0]
    losses_f32, _, _ = train(c, torch.float32, with_transformers)
    if with_transformers:  # the functional model below is the one that the other cases use: hold it against transformers
        own_losses, _, own = train(c, torch.float64, False)
        assert np.allclose(losses, own_losses, atol=1e-10, rtol=0)
        assert all(torch.allclose(own[n], gradients[n], atol=1e-12, rtol=1e-9) for n in own)
    assert margin > 1e-6, f"{name}: a choice of features hangs on a relative difference of {margin:.1e}; take another seed"
    tokens, targets, first = batches(c)
    tensors = {"losses": np.array(losses), "losses_f32": np.array(losses_f32), "grad_norms": np.array(norms), "tokens": tokens,
               "targets": targets}
    if first is not None:
        tensors["first_key"] = first
    tensors.update({"d." + n: g for n, g in gradients.items()})
    write(name, tensors)
    print(f"  loss {losses[0]:.5f} -> {losses[-1]:.5f}, float32 differs by {np.abs(np.array(losses) - losses_f32).max():.1e}, "
          f"closest choice {margin:.1e}, gradient norm {norms[0]:.3f}")


# ---------------------------------------------------------------------------------------------------------------------- ops
def op_golden():
    def leaf(stream, *shape, scale=1.0):
        return torch.from_numpy(np.float32(scale) * normal(math.prod(shape), stream).reshape(shape)).double().requires_grad_()

    t = {}
    x, w, b, dy = leaf(1, 13, 40), leaf(2, 40), leaf(3, 40), leaf(4, 13, 40).detach()
    y = F.layer_norm(x, (40,), w, b, 1e-5)
    y.backward(dy)
    t.update({"layer_norm.y": y, "layer_norm.d_x": x.grad, "layer_norm.d_weight": w.grad, "layer_norm.d_bias": b.grad})

    x, w, b, dy = leaf(1, 13, 24), leaf(2, 33, 24, scale=0.3), leaf(3, 33), leaf(4, 13, 33).detach()
    a = F.linear(x, w, b)
    y = F.gelu(a, approximate="tanh")
    y.backward(dy)
    t.update({"linear_gelu.pre": a, "linear_gelu.y": y, "linear_gelu.d_x": x.grad, "linear_gelu.d_weight": w.grad, "linear_gelu.d_bias": b.grad})

    x, w = leaf(1, 11, 16), leaf(2, 37, 16)
    target = torch.tensor([(7 * n) % 37 if n % 4 else -1 for n in range(11)])
    loss = F.cross_entropy(x @ w.T, target, ignore_index=-1, reduction="none")
    (loss.sum() / 11).backward()
    t.update({"cross_entropy.targets": target, "cross_entropy.losses": loss, "cross_entropy.d_x": x.grad, "cross_entropy.d_weight": w.grad})

    # [B, T, heads, D] as our tensors lie; PyTorch wants heads before time.
    q, k, v, d_out = leaf(1, 2, 17, 4, 16), leaf(2, 2, 17, 2, 16), leaf(3, 2, 17, 2, 8), leaf(4, 2, 17, 4, 8).detach()
    for name, c in (("dense", {}), ("sfa", {"k_q": 5, "k_k": 5})):
        swap = lambda z: z.transpose(1, 2)
        out = swap(attention(c, swap(q), swap(k), swap(v), None))
        if name == "dense":
            theirs = swap(F.scaled_dot_product_attention(swap(q), swap(k), swap(v), is_causal=True, enable_gqa=True))
            assert torch.allclose(out, theirs, atol=1e-12)
        for z in (q, k, v):
            z.grad = None
        out.backward(d_out)
        t.update({f"attention.{name}.out": out, f"attention.{name}.d_q": q.grad, f"attention.{name}.d_k": k.grad, f"attention.{name}.d_v": v.grad})
        t = {n: z.detach().clone() for n, z in t.items()}
    write("ops.bin", t)


def main():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    op_golden()
    gpt2 = dict(C=64, H=2, G=2, Dqk=32, F=128, L=2, V=257, P=32, B=4, T=24)
    model_golden("gpt2_dense.bin", gpt2, True)
    model_golden("gpt2_sfa_k8.bin", dict(gpt2, k_q=8, k_k=8), True)
    small = dict(C=32, H=4, G=4, Dqk=8, F=64, L=3, V=131, P=24, B=4, T=24)
    model_golden("gpt2_wide_qk.bin", dict(small, Dqk=12, window=7, ignore=True), False)
    model_golden("gpt2_gqa_sfa.bin", dict(small, G=2, Dqk=16, k_q=4, k_k=6, two_of_four=True, documents=True), False)
    model_golden("gpt2_sfa_mask.bin", dict(small, H=2, G=2, Dqk=16, k_q=3, k_k=4, mask=True), False)


if __name__ == "__main__":
    main()
