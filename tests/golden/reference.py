"""Writes golden_<case>.h5: what the mathematics says the model computes, in float64.

  reference.py --out DIR        writes every case to DIR
  reference.py --check DIR      recomputes and compares with the files in DIR to 1e-9
  reference.py --self-check     compares the automatic gradients with finite differences
  reference.py --seeds CASE N   least margins of the first N seeds
"""
import argparse
import pathlib
import sys

import h5py
import numpy as np

import cases
import model
import training

FLOAT32_ULP = 2.0**-24


def growth_of_errors(cfg, initial, data, curve, final):
    """How far 20 steps carry a disturbance: every gradient entry that is not zero is moved by up to `unit` times
    the largest of its tensor, every initial value by up to `unit` times itself; the distances at the end, in
    units of `unit`. (A row no token used has gradient zero in any precision.)"""
    unit = FLOAT32_ULP
    rng = np.random.default_rng(cfg["seed"])
    around = lambda shape: unit * rng.uniform(-1, 1, shape)
    noise = lambda name, g: g + (g != 0) * around(g.shape) * np.abs(g).max()
    moved = {n: v * (1 + around(v.shape)) for n, v in initial.items()}
    _, curve2, final2, _ = training.train(cfg, moved, data, noise)
    params = max(np.abs(final2[n] - final[n]).max() for n in final)
    loss = max(np.abs((curve2[n] - curve[n])).max() for n in ("total", "ce", "balance", "z_loss", "entropy"))
    norm = np.abs(curve2["grad_norm"] / curve["grad_norm"] - 1).max()
    return {"growth_params": params / unit, "growth_loss": loss / unit, "growth_grad_norm": norm / unit}


def compute(name):
    """-> attributes, {dataset: float64 array}."""
    cfg, initial, data = cases.build(name)
    first, curve, final, margins = training.train(cfg, initial, data)
    if min(margins.values()) < cases.MARGIN:
        raise SystemExit(f"{name}: a margin is below {cases.MARGIN}: {margins}; choose another seed")
    out = {"init/" + n: v for n, v in initial.items()}
    out.update({"batch/" + n: v for n, v in data.items()})
    out.update({"curve/" + n: v for n, v in curve.items()})
    out.update({"grad/" + n: v for n, v in first["grads"].items()})
    out.update({"final/" + n: v for n, v in final.items()})
    valid = np.arange(cfg["seq_len"])[None, :] < data["lengths"][0][:, None]
    logits = np.concatenate(first["logits"])
    out["step1/logits"] = logits if cfg["head"] == "classifier" else logits * valid.reshape(-1, 1)
    for l in model.moe_layers(cfg):
        for what in ("probs", "lse", "picks", "weights"):
            out[f"step1/layers.{l}.{what}"] = np.concatenate([r[l][what] for r in first["routing"]])
    attributes = {**margins, **growth_of_errors(cfg, initial, data, curve, final)}
    return cases.config_text(cfg), attributes, {n: np.ascontiguousarray(v, "<f8") for n, v in out.items()}


def write(path, text, attributes, arrays):
    with h5py.File(path, "w", libver=("v108", "v110")) as f:
        f.attrs["config"] = np.bytes_(text)  # fixed length, as h5::File reads it
        for name, value in attributes.items():
            f.attrs[name] = float(value)
        for name, value in arrays.items():
            f.create_dataset(name, data=value)


def differences(path, text, attributes, arrays):
    """Lines that tell where the file differs by more than 1e-9 of a tensor's largest value. Margins are held
    to 1e-6; how errors grow is a measurement and is held to a factor of 2."""
    with h5py.File(path, "r") as f:
        if f.attrs["config"].decode() != text:
            yield "config differs"
        for name, value in attributes.items():
            have, slack = f.attrs[name], 2.0 if name.startswith("growth") else 1 + 1e-6
            if not have == value and not value / slack <= have <= value * slack:
                yield f"{name}: {have} in the file, {value} now"
        names = set()
        f.visititems(lambda n, item: names.add(n) if isinstance(item, h5py.Dataset) else None)
        if names != set(arrays):
            yield f"other datasets: {sorted(names ^ set(arrays))}"
        for name in sorted(names & set(arrays)):
            have, want = f[name][()], arrays[name]
            if have.shape != want.shape:
                yield f"{name}: shape {have.shape}, not {want.shape}"
            elif have.size and np.abs(have - want).max() > 1e-9 * np.abs(want).max():
                yield f"{name}: differs by {np.abs(have - want).max():.3g}"


def self_check(name):
    """Per parameter tensor: the derivative along a random direction and by its largest entry, against central
    differences of the loss with free selection. -> the worst relative error."""
    cfg, params, data = cases.build(name)
    _, grads = training.loss_and_grads(cfg, params, data, 0)
    rng, worst, h = np.random.default_rng(0), 0.0, 1e-5
    for n, g in grads.items():
        largest = np.zeros(g.shape)
        largest.flat[np.abs(g).argmax()] = 1.0
        for d in (rng.standard_normal(g.shape) / np.sqrt(g.size), largest):
            up, down = ({**params, n: params[n] + s * h * d} for s in (1, -1))
            loss = [training.step_loss(cfg, p, data, 0)[0] for p in (up, down)]
            error = abs((loss[0] - loss[1]) / (2 * h) - np.sum(g * d))
            # Rounding of the loss bounds what a difference can show: eps * loss / h, about 1e-10.
            worst = max(worst, error / max(np.abs(g).max(), 1e-2))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--check", type=pathlib.Path)
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument("--seeds", nargs=2, metavar=("CASE", "N"))
    args = parser.parse_args()
    failed = False
    if args.seeds:
        for seed in range(1, int(args.seeds[1]) + 1):
            margins = training.train(*cases.build(args.seeds[0], seed))[3]
            print(seed, {n: float(f"{v:.2g}") for n, v in margins.items()}, flush=True)
    for name in cases.CASES:
        if args.self_check:
            worst = self_check(name)
            failed |= worst > 1e-7
            print(f"{name}: gradients agree with finite differences to {worst:.2g} (bound 1e-7)")
        if args.out or args.check:
            result = compute(name)
            print(name, {n: float(f"{v:.3g}") for n, v in result[1].items()})
        if args.out:
            write(args.out / f"golden_{name}.h5", *result)
        if args.check:
            lines = list(differences(args.check / f"golden_{name}.h5", *result))
            failed |= bool(lines)
            print("\n".join(f"{name}: {line}" for line in lines) or f"{name}: agrees to 1e-9")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
