"""The model's mathematics in NumPy, float64, written for reading: no tiling, no gather, no hand-made gradient.

Every expert runs on every token and its output is multiplied by a weight that is zero where it was not picked.
`autograd` differentiates `forward`; the picks and the picked fractions f_i go in as constants.
"""
import autograd.numpy as np
import numpy as onp

ROUTER, EXPERT = "router.{}/layers.{}.{}", "expert.{}/layers.{}.{}"


def moe_layers(cfg):
    step = cfg["decoder_sparse_step"]
    return [l for l in range(cfg["num_hidden_layers"]) if step > 0 and (l + 1) % step == 0]


def param_shapes(cfg):
    """block/name -> shape, for every parameter and buffer."""
    V, D, L = cfg["vocab_size"], cfg["hidden_size"], cfg["num_hidden_layers"]
    H, Hkv, Dh = cfg["num_attention_heads"], cfg["num_key_value_heads"], cfg["head_dim"]
    trunk = {"embed_tokens.weight": (V, D), "norm.weight": (D,)}
    shapes = {}
    for l in range(L):
        at = f"layers.{l}."
        trunk[at + "input_layernorm.weight"] = (D,)
        trunk[at + "self_attn.q_proj.weight"] = (H * Dh, D)
        trunk[at + "self_attn.k_proj.weight"] = (Hkv * Dh, D)
        trunk[at + "self_attn.v_proj.weight"] = (Hkv * Dh, D)
        trunk[at + "self_attn.o_proj.weight"] = (D, H * Dh)
        if cfg["use_qk_norm"]:
            trunk[at + "self_attn.q_norm.weight"] = (Dh,)
            trunk[at + "self_attn.k_norm.weight"] = (Dh,)
        trunk[at + "post_attention_layernorm.weight"] = (D,)
        width, prefix = cfg["intermediate_size"], at + "mlp."
        if l in moe_layers(cfg):
            width, prefix = cfg["shared_expert_intermediate_size"], at + "mlp.shared_expert."
            for i, (kind, F) in enumerate(cfg["experts"]):
                if kind == "swiglu":
                    shapes[EXPERT.format(i, l, "gate_proj.weight")] = (F, D)
                shapes[EXPERT.format(i, l, "up_proj.weight")] = (F, D)
                shapes[EXPERT.format(i, l, "down_proj.weight")] = (D, F)
                shapes[ROUTER.format(i, l, "weight")] = (D,)
                shapes[ROUTER.format(i, l, "logit_bias")] = (1,)
                shapes[ROUTER.format(i, l, "selection_bias")] = (1,)
        if width > 0:
            trunk[prefix + "gate_proj.weight"] = (width, D)
            trunk[prefix + "up_proj.weight"] = (width, D)
            trunk[prefix + "down_proj.weight"] = (D, width)
    if cfg["head"] == "classifier":
        trunk["score.weight"] = (cfg["num_labels"], D)
    elif not cfg["tie_word_embeddings"]:
        trunk["lm_head.weight"] = (V, D)
    return {**{"trunk/" + name: shape for name, shape in trunk.items()}, **shapes}


def is_buffer(name):
    return name.endswith("selection_bias")


def decays(name):
    """Weight decay: matrices and router rows; neither norms nor the logit bias."""
    return not (name.endswith("norm.weight") or name.endswith("logit_bias"))


def rms_norm(x, w, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w


def silu(x):
    return x / (1.0 + np.exp(-x))


def swiglu(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def rope(x, theta):
    """x [B,S,heads,Dh]: (x[i], x[i + Dh/2]) turns by position * theta^(-2i/Dh)."""
    S, Dh = x.shape[1], x.shape[3]
    angle = onp.arange(S)[:, None] * theta ** (-2.0 * onp.arange(Dh // 2) / Dh)[None, :]
    cos, sin = onp.cos(angle)[None, :, None, :], onp.sin(angle)[None, :, None, :]
    a, b = x[..., : Dh // 2], x[..., Dh // 2 :]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(cfg, p, at, x, lengths):
    B, S, _ = x.shape
    H, Hkv, Dh = cfg["num_attention_heads"], cfg["num_key_value_heads"], cfg["head_dim"]
    q = (x @ p[at + "q_proj.weight"].T).reshape((B, S, H, Dh))
    k = (x @ p[at + "k_proj.weight"].T).reshape((B, S, Hkv, Dh))
    v = (x @ p[at + "v_proj.weight"].T).reshape((B, S, Hkv, Dh))
    if cfg["use_qk_norm"]:
        q = rms_norm(q, p[at + "q_norm.weight"], cfg["rms_norm_eps"])
        k = rms_norm(k, p[at + "k_norm.weight"], cfg["rms_norm_eps"])
    q, k = rope(q, cfg["rope_theta"]), rope(k, cfg["rope_theta"])
    q = q.reshape((B, S, Hkv, H // Hkv, Dh))  # query head h reads key/value head h / (H / Hkv)
    scores = np.einsum("bsngd,btnd->bngst", q, k) / onp.sqrt(Dh)
    seen = (onp.arange(S)[None, None, :] < lengths[:, None, None]) * onp.ones((B, S, S), bool)
    if cfg["causal"]:
        seen = seen & (onp.arange(S)[None, :, None] >= onp.arange(S)[None, None, :])
    e = np.exp(scores - onp.max(_plain(scores))) * seen[:, None, None, :, :]
    out = np.einsum("bngst,btnd->bsngd", e / np.sum(e, axis=-1, keepdims=True), v)
    return out.reshape((B, S, H * Dh)) @ p[at + "o_proj.weight"].T


def _plain(x):
    while hasattr(x, "_value"):
        x = x._value
    return x


def top_k(scores, k):
    """Indices of the k highest in descending order, the lower index at a tie; and the gaps between neighbours
    of the first k + 1."""
    order = onp.argsort(-scores, axis=-1, kind="stable")
    ranked = onp.take_along_axis(scores, order, axis=-1)
    return order[:, :k], ranked[:, :k] - ranked[:, 1 : k + 1]


def route(cfg, p, l, h, batch, fixed):
    """h [T,D] -> combine weights [T,E] (zero where not picked), auxiliary losses, and what was decided."""
    E, K = len(cfg["experts"]), cfg["num_experts_per_tok"]
    W = np.stack([p[ROUTER.format(i, l, "weight")] for i in range(E)])
    logit_bias = np.concatenate([p[ROUTER.format(i, l, "logit_bias")] for i in range(E)])
    selection_bias = onp.concatenate([_plain(p[ROUTER.format(i, l, "selection_bias")]) for i in range(E)])
    z = h @ W.T + logit_bias
    segments, valid = batch["segments"].reshape(-1), batch["valid"].reshape(-1)
    if cfg["routing"] == "document":
        same = (segments[:, None] == segments[None, :]) & (segments[:, None] >= 0)
        z = (same / onp.maximum(same.sum(axis=1, keepdims=True), 1)) @ z
    softmax = np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True)
    sigmoid = 1.0 / (1.0 + np.exp(-z))
    scoring = cfg["scoring"]
    p_all = sigmoid / np.sum(sigmoid, axis=-1, keepdims=True) if scoring == "sigmoid" else softmax

    if fixed is None:
        select_by = {"softmax_before_top_k": softmax, "softmax_after_top_k": z, "sigmoid": sigmoid}[scoring]
        picks, gaps = top_k(_plain(select_by) + selection_bias, K)
        picked = onp.zeros((h.shape[0], E))
        onp.put_along_axis(picked, picks, 1.0, axis=-1)
        picked *= valid[:, None]
        fixed = {"picked": picked, "counts": picked.sum(axis=0), "picks": onp.where(valid[:, None], picks, -1),
                 "selection_margin": gaps[valid, K - 1].min(), "order_margin": gaps[valid].min()}
    picked = fixed["picked"]

    unused = (1.0 - valid)[:, None]  # keeps 0/0 away from padding rows
    if scoring == "softmax_after_top_k":
        e = np.exp(z) * picked
        weights = e / (np.sum(e, axis=-1, keepdims=True) + unused)
    else:
        weights = (softmax if scoring == "softmax_before_top_k" else sigmoid) * picked
        if cfg["norm_topk_prob"]:
            weights = weights / (np.sum(weights, axis=-1, keepdims=True) + unused)
    weights = weights * cfg["routed_scaling_factor"]

    n = valid.sum()
    mask = valid[:, None].astype(float)
    f = fixed["counts"] / (K * n)
    P = np.sum(p_all * mask, axis=0) / n
    lse = np.log(np.sum(np.exp(z), axis=-1))
    h_tok = -np.sum(p_all * np.log(p_all) * mask) / n / onp.log(E)
    h_bat = -np.sum(P * np.log(P)) / onp.log(E)
    losses = {"balance": cfg["balance"] * E * np.sum(f * P),
              "z_loss": cfg["z_loss"] * np.sum(lse**2 * valid) / n,
              "entropy": cfg["token_entropy"] * h_tok - cfg["batch_entropy"] * h_bat}
    shown = {"probs": _plain(p_all) * mask, "lse": _plain(lse) * valid,
             "weights": onp.take_along_axis(_plain(weights), onp.maximum(fixed["picks"], 0), axis=-1) * mask}
    return weights, losses, {**fixed, **shown}


def expert(cfg, p, i, l, x):
    """Output [T,D] of expert i; for an adapter also how close a pre-activation came to relu's kink."""
    kind, _ = cfg["experts"][i]
    up, down = p[EXPERT.format(i, l, "up_proj.weight")], p[EXPERT.format(i, l, "down_proj.weight")]
    if kind == "swiglu":
        return swiglu(x, p[EXPERT.format(i, l, "gate_proj.weight")], up, down), None
    a = x @ up.T
    return x + np.maximum(a, 0.0) @ down.T, onp.abs(_plain(a)).min(axis=-1)


def forward(cfg, p, batch, fixed=None):
    """batch: tokens, targets, segments [B,S] (classifier: targets [B]), lengths [B], valid [B,S].
    -> sum of the token losses, auxiliary losses (sums over MoE layers), logits, per-layer decisions."""
    B, S = batch["tokens"].shape
    D, eps = cfg["hidden_size"], cfg["rms_norm_eps"]
    x = p["trunk/embed_tokens.weight"][batch["tokens"]]
    aux = {"balance": 0.0, "z_loss": 0.0, "entropy": 0.0}
    routing = {}
    for l in range(cfg["num_hidden_layers"]):
        at = f"trunk/layers.{l}."
        h = rms_norm(x, p[at + "input_layernorm.weight"], eps)
        x = x + attention(cfg, p, at + "self_attn.", h, batch["lengths"])
        h = rms_norm(x, p[at + "post_attention_layernorm.weight"], eps)
        mlp = lambda prefix: swiglu(h, *(p[at + prefix + m + "_proj.weight"] for m in ("gate", "up", "down")))
        if l not in moe_layers(cfg):
            x = x + mlp("mlp.")
            continue
        rows = h.reshape((B * S, D))
        weights, losses, routing[l] = route(cfg, p, l, rows, batch, fixed and fixed[l])
        aux = {name: aux[name] + losses[name] for name in aux}
        kinks = [onp.inf]
        y = 0.0
        for i in range(len(cfg["experts"])):
            out, kink = expert(cfg, p, i, l, rows)
            y = y + weights[:, i : i + 1] * out
            if kink is not None and routing[l]["picked"][:, i].any():
                kinks.append(kink[routing[l]["picked"][:, i] > 0].min())
        routing[l]["relu_margin"] = min(kinks)
        x = x + y.reshape((B, S, D))
        if cfg["shared_expert_intermediate_size"] > 0:
            x = x + mlp("mlp.shared_expert.")
    x = rms_norm(x, p["trunk/norm.weight"], eps)
    if cfg["head"] == "classifier":
        mask = batch["valid"][:, :, None].astype(float)
        logits = np.sum(x * mask, axis=1) / batch["lengths"][:, None] @ p["trunk/score.weight"].T
        targets = batch["targets"]
    else:
        head = "trunk/embed_tokens.weight" if cfg["tie_word_embeddings"] else "trunk/lm_head.weight"
        logits = x.reshape((B * S, D)) @ p[head].T
        targets = batch["targets"].reshape(-1)
    one_hot = (targets[:, None] == onp.arange(logits.shape[1])[None, :]).astype(float)  # no row for target -1
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return -np.sum(one_hot * log_p), aux, _plain(logits), routing
