#!/usr/bin/env python3
"""torch._grouped_mm on the shapes of gpu_benchmark's experts: torch_grouped_mm.py SHAPE...

SHAPE is as gpu_benchmark prints it, "D2048 F1408 E64 rows 2048 each" (or "uneven"). Times the three products of forward
and the six of backward in bf16, without the activation between them, and prints JSON lines like gpu_benchmark's.
"""

import json
import re
import statistics
import sys


def rows_of(experts, rows, uneven):
    """As in experts_cases.cpp."""
    if not uneven or experts == 1:
        return [rows] * experts
    return [2 * rows * e // (experts - 1) for e in range(experts)]


def median_ms(torch, call, budget_ms=400):
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    stamps = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        stamps.append((begin, end))
    torch.cuda.synchronize()
    first = statistics.median(a.elapsed_time(b) for a, b in stamps)
    for _ in range(min(35, int(budget_ms / max(first, 1e-3)) - 5)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        stamps.append((begin, end))
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in stamps]
    return statistics.median(times), len(times)


def measure(torch, grouped_mm, shape):
    dim, width, experts, rows, kind = re.fullmatch(
        r"D(\d+) F(\d+) E(\d+) rows (\d+) (each|uneven)", shape).groups()
    dim, width, experts, rows = int(dim), int(width), int(experts), int(rows)
    counts = rows_of(experts, rows, kind == "uneven")
    total = sum(counts)
    on = {"device": "cuda", "dtype": torch.bfloat16}
    offsets = torch.cumsum(torch.tensor(counts), 0).to(device="cuda", dtype=torch.int32)
    x, dy = (torch.randn(total, dim, **on) * 0.5 for _ in range(2))
    hidden, d_hidden = (torch.randn(total, width, **on) * 0.5 for _ in range(2))
    gate, up = (torch.randn(experts, width, dim, **on) * 0.02 for _ in range(2))
    down = torch.randn(experts, dim, width, **on) * 0.02

    def forward():
        grouped_mm(x, gate.transpose(-2, -1), offs=offsets)
        grouped_mm(x, up.transpose(-2, -1), offs=offsets)
        grouped_mm(hidden, down.transpose(-2, -1), offs=offsets)

    def backward():
        grouped_mm(dy, down, offs=offsets)
        grouped_mm(d_hidden, gate, offs=offsets)
        grouped_mm(d_hidden, up, offs=offsets)
        grouped_mm(dy.t(), hidden, offs=offsets)
        grouped_mm(d_hidden.t(), x, offs=offsets)
        grouped_mm(d_hidden.t(), x, offs=offsets)

    for name, call in (("forward", forward), ("backward", backward)):
        ms, repeats = median_ms(torch, call)
        print(json.dumps({"case": f"torch_grouped_mm_{name}", "group": "torch", "dtype": "bf16", "shape": shape,
                          "ms": round(ms, 5), "repeats": repeats}), flush=True)


def main(shapes):
    def not_run(why):
        print(json.dumps({"case": "torch_grouped_mm", "not_run": why}))
        return 0

    if not shapes:
        return not_run("no shapes of experts were measured")
    try:
        import torch
    except ImportError as e:
        return not_run(f"no torch in {sys.executable} ({e})")
    if not torch.cuda.is_available():
        return not_run("torch sees no GPU")
    grouped_mm = getattr(torch, "_grouped_mm", None)
    if grouped_mm is None:
        return not_run(f"torch {torch.__version__} has no _grouped_mm")
    failed = 0
    for shape in shapes:
        try:
            measure(torch, grouped_mm, shape)
        except Exception as e:  # one shape that torch refuses must not lose the others
            failed = 1
            print(json.dumps({"case": "torch_grouped_mm", "shape": shape, "error": str(e).splitlines()[0][:300]}),
                  flush=True)
        torch.cuda.empty_cache()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
