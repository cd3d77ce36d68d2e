"""Sizes, seeds and data of the golden cases. Keys are the names of nn::ModelConfig and train::TrainConfig."""
import numpy as np

import model

COMMON = dict(
    rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, use_qk_norm=False, causal=True,
    intermediate_size=0, decoder_sparse_step=1, shared_expert_intermediate_size=0, norm_topk_prob=True,
    routed_scaling_factor=1.0, routing="token", head="lm", num_labels=0, num_hidden_layers=2, hidden_size=16,
    num_attention_heads=4, head_dim=4, steps=20, micro_batches=1, selection_bias_rate=0.0, balance=0.0,
    z_loss=0.0, token_entropy=0.0, batch_entropy=0.0, min_lr_ratio=0.1, warmup_steps=0, decay_steps=0,
    beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)

# `seed`: chosen so that over all steps no token's selection is closer than MARGIN to a tie.
CASES = {
    "lm_softmax": dict(
        COMMON, seed=84, vocab_size=37, num_key_value_heads=2, use_qk_norm=True,
        experts=[("swiglu", 8), ("swiglu", 12), ("swiglu", 8), ("swiglu", 16), ("swiglu", 8)],
        num_experts_per_tok=2, scoring="softmax_before_top_k", shared_expert_intermediate_size=6, balance=0.1,
        z_loss=0.01, token_entropy=0.05, batch_entropy=0.08, schedule="cosine", warmup_steps=4, lr=5e-3, clip_norm=3.0,
        batch_size=4, seq_len=12),
    "lm_sigmoid": dict(
        COMMON, seed=57, vocab_size=29, num_key_value_heads=4, tie_word_embeddings=True, intermediate_size=20,
        decoder_sparse_step=2, experts=[("swiglu", 8), ("adapter", 6), ("swiglu", 10), ("swiglu", 8)],
        num_experts_per_tok=2, scoring="sigmoid", routed_scaling_factor=2.5, selection_bias_rate=1e-2,
        balance=0.02, z_loss=0.01, token_entropy=0.02, batch_entropy=0.03, schedule="wsd", warmup_steps=3, decay_steps=6, lr=5e-3, batch_size=6, micro_batches=2,
        seq_len=10),
    "classifier": dict(
        COMMON, seed=83, vocab_size=31, num_key_value_heads=1, causal=False, head="classifier", num_labels=3,
        routing="document", experts=[("swiglu", 8), ("swiglu", 8), ("swiglu", 12), ("swiglu", 4)],
        num_experts_per_tok=2, scoring="softmax_after_top_k", z_loss=0.01, token_entropy=-0.03,
        batch_entropy=0.05, schedule="constant", lr=3e-3, weight_decay=0.05, clip_norm=0.0, batch_size=5,
        seq_len=10),
    "lm_top1": dict(
        COMMON, seed=16, vocab_size=23, num_key_value_heads=4, num_hidden_layers=1,
        experts=[("adapter", 5), ("swiglu", 8), ("adapter", 7)], num_experts_per_tok=1,
        scoring="softmax_before_top_k", norm_topk_prob=False, routed_scaling_factor=1.5, balance=0.05,
        token_entropy=0.02, selection_bias_rate=5e-3, schedule="constant", warmup_steps=2, lr=3e-3, clip_norm=2.0,
        batch_size=3, seq_len=9),
}
MARGIN = 1e-4


def initial_parameters(cfg, rng):
    params = {}
    for name, shape in model.param_shapes(cfg).items():
        x = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            params[name] = 1.0 + 0.1 * x
        elif name.endswith("_bias"):
            params[name] = (0.05 if model.is_buffer(name) else 0.3) * x
        else:
            params[name] = 0.3 * x
    return params


def make_data(cfg, rng):
    """[steps, sequences, ...] of integers. Sequences follow t -> 3t + 1 mod V four times in five, hold one or
    more documents, and some are padded on the right; a few targets are withheld (-1)."""
    N, B, S, V = cfg["steps"], cfg["batch_size"], cfg["seq_len"], cfg["vocab_size"]
    tokens, targets = np.zeros((N, B, S), int), np.full((N, B, S), -1)
    segments, domains = np.full((N, B, S), -1), np.full((N, B, S), -1)
    lengths = np.where(rng.random((N, B)) < 0.5, S, rng.integers(3, S + 1, (N, B)))
    labels = np.zeros((N, B), int)
    for n in range(N):
        document = 0
        for b in range(B):
            chain = [rng.integers(V)]
            for _ in range(S):
                chain.append((3 * chain[-1] + 1) % V if rng.random() < 0.8 else rng.integers(V))
            length = lengths[n, b]
            tokens[n, b, :length] = chain[:length]
            targets[n, b, :length] = np.where(rng.random(length) < 0.9, chain[1 : length + 1], -1)
            starts = rng.random(length) < 0.15
            starts[0] = True
            of_token = document + np.cumsum(starts) - 1
            segments[n, b, :length] = of_token
            domains[n, b, :length] = rng.integers(0, 3, S + 1)[of_token - document]
            document = of_token[-1] + 1
            labels[n, b] = tokens[n, b, :length].sum() % cfg["num_labels"] if cfg["num_labels"] else 0
    return {"tokens": tokens, "targets": labels if cfg["head"] == "classifier" else targets,
            "lengths": lengths, "segments": segments, "domains": domains}


def build(name, seed=None):
    cfg = dict(CASES[name])
    if seed is not None:
        cfg["seed"] = seed
    rng = np.random.default_rng(cfg["seed"])
    return cfg, initial_parameters(cfg, rng), make_data(cfg, rng)


def config_text(cfg):
    """key=value lines; booleans as true and false, experts as kind:width,kind:width."""
    def text(value):
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            return ",".join(f"{kind}:{width}" for kind, width in value)
        return repr(value) if isinstance(value, float) else str(value)
    return "".join(f"{key}={text(cfg[key])}\n" for key in sorted(cfg))
