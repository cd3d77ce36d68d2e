"""One optimizer step and a run of them, on top of model.forward. Gradients come from autograd."""
import autograd
import numpy as np

import model


def learning_rate(cfg, s):
    """Of update s (from 1)."""
    N, w, d, r, lr = cfg["steps"], cfg["warmup_steps"], cfg["decay_steps"], cfg["min_lr_ratio"], cfg["lr"]
    if s <= w:
        return lr * s / w
    if cfg["schedule"] == "cosine":
        return lr * (r + (1 - r) * 0.5 * (1 + np.cos(np.pi * (s - w) / (N - w))))
    if cfg["schedule"] == "wsd" and s > N - d:
        return lr * (1 - (1 - r) * (s - (N - d)) / d)
    return lr


def micro_batches(cfg, data, s):
    """The micro-batches of step s (from 0): equal shares of its sequences, in order."""
    M = cfg["micro_batches"]
    B = cfg["batch_size"] // M
    for m in range(M):
        batch = {name: data[name][s, m * B : (m + 1) * B] for name in data}
        batch["valid"] = np.arange(cfg["seq_len"])[None, :] < batch["lengths"][:, None]
        yield batch


def step_loss(cfg, params, data, s, fixed=None):
    """-> total loss, its terms, logits and routing of each micro-batch."""
    M = cfg["micro_batches"]
    num_targets = (data["targets"][s] >= 0).sum()
    terms = {"ce": 0.0, "balance": 0.0, "z_loss": 0.0, "entropy": 0.0}
    logits, routing = [], []
    for m, batch in enumerate(micro_batches(cfg, data, s)):
        ce_sum, aux, out, decided = model.forward(cfg, params, batch, fixed and fixed[m])
        terms["ce"] = terms["ce"] + ce_sum / num_targets
        for name in aux:
            terms[name] = terms[name] + aux[name] / M
        logits.append(out)
        routing.append(decided)
    total = terms["ce"] + terms["balance"] + terms["z_loss"] + terms["entropy"]
    return total, terms, logits, routing


def loss_and_grads(cfg, params, data, s):
    """-> (total, terms, logits, routing), gradient of every parameter that is no buffer."""
    plain = step_loss(cfg, params, data, s)
    free = {n: v for n, v in params.items() if not model.is_buffer(n)}
    buffers = {n: v for n, v in params.items() if model.is_buffer(n)}
    # The decisions of the plain pass are constants of the differentiated one.
    grads = autograd.grad(lambda q: step_loss(cfg, {**q, **buffers}, data, s, plain[3])[0])(free)
    return plain, grads


def train(cfg, initial, data, noise=None):
    """Runs all steps. `noise(name, gradient)` may disturb gradients (to measure how errors grow).
    -> what the first step computed, a curve of every step, final parameters, least margins."""
    params = {n: v.copy() for n, v in initial.items()}
    m = {n: np.zeros_like(v) for n, v in params.items()}
    v = {n: np.zeros_like(x) for n, x in params.items()}
    b1, b2 = cfg["beta1"], cfg["beta2"]
    layers, E = model.moe_layers(cfg), len(cfg["experts"])
    curve = {n: [] for n in ("total", "ce", "balance", "z_loss", "entropy", "grad_norm", "lr", "counts")}
    margins = {"selection_margin": np.inf, "order_margin": np.inf, "relu_margin": np.inf}
    first = None
    for s in range(cfg["steps"]):
        (total, terms, logits, routing), grads = loss_and_grads(cfg, params, data, s)
        if first is None:
            first = {"logits": logits, "routing": routing, "grads": grads}
        if noise:
            grads = {n: noise(n, g) for n, g in grads.items()}
        for decided in routing:
            for name in margins:
                margins[name] = min([margins[name]] + [decided[l][name] for l in layers])
        counts = np.array([sum(decided[l]["counts"] for decided in routing) for l in layers])
        norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
        scale = cfg["clip_norm"] / norm if cfg["clip_norm"] > 0 and norm > cfg["clip_norm"] else 1.0
        lr = learning_rate(cfg, s + 1)
        for n, g in grads.items():
            g = g * scale
            m[n] = b1 * m[n] + (1 - b1) * g
            v[n] = b2 * v[n] + (1 - b2) * g * g
            m_hat, v_hat = m[n] / (1 - b1 ** (s + 1)), v[n] / (1 - b2 ** (s + 1))
            decay = cfg["weight_decay"] if model.decays(n) else 0.0
            params[n] = params[n] - lr * (m_hat / (np.sqrt(v_hat) + cfg["eps"]) + decay * params[n])
        u = cfg["selection_bias_rate"]
        for j, l in enumerate(layers if u > 0 else []):
            d = u * np.sign(counts[j].mean() - counts[j])
            for i in range(E):
                params[model.ROUTER.format(i, l, "selection_bias")] += d[i] - d.mean()
        for name, value in {**terms, "total": total, "grad_norm": norm, "lr": lr, "counts": counts}.items():
            curve[name].append(value)
    return first, {n: np.array(c, dtype=float) for n, c in curve.items()}, params, margins
