"""What jobs/gpu-check writes: figures against goals, results.json and table.md. benchmarks/README.md has the format.

A figure is "met" or "missed" only when it was measured. Everything else is "not run" or "failed", with the reason.
"""

SCHEMA = "moecollab gpu-check 1"
STAGES = ["environment", "build", "tests", "benchmarks", "torch", "memcheck", "racecheck"]
ROWS = ["route_top_k_forward", "route_top_k_backward", "sort_picks", "gather_rows", "combine_rows_forward",
        "combine_rows_backward", "dispatch_rows_backward"]
EXPERTS = ["experts_forward", "experts_backward"]
LAYER = ["moe_layer_forward", "moe_layer_backward"]


def share_of_reference(row, _):
    return row["reference_ms"] / row["ms"] if row.get("reference_ms") else None


def share_of_copy(row, rows):
    copies = [r for r in rows if r["case"] == "copy" and r["status"] == "measured"]
    if not copies or not row.get("gigabytes"):
        return None
    return row["gigabytes"] / row["ms"] / (copies[0]["gigabytes"] / copies[0]["ms"])


def share_of_torch(row, rows):
    name = row["case"].replace("experts_", "torch_grouped_mm_")
    same = [r for r in rows if r["case"] == name and r["status"] == "measured" and r.get("shape") == row["shape"]]
    return same[0]["ms"] / row["ms"] if same else None


def beyond_experts(row, _):
    return 1 - row["reference_ms"] / row["ms"] if row.get("reference_ms") else None


# name, cases, which rows of those cases, figure, at least or at most, the goal, the stage that the figure needs last
GOALS = [
    ("experts: rate of dense cuBLASLt products", EXPERTS, lambda r: r.get("rows_per_expert", 0) >= 2048,
     share_of_reference, ">=", 0.85, "benchmarks"),
    ("experts: rate of torch._grouped_mm", EXPERTS, lambda r: r["dtype"] == "bf16", share_of_torch, ">=", 1.00,
     "torch"),
    ("rows: bandwidth of a copy", ROWS, lambda r: True, share_of_copy, ">=", 0.80, "benchmarks"),
    ("layer: time that is not its experts'", LAYER, lambda r: True, beyond_experts, "<=", 0.15, "benchmarks"),
]


def runs_anywhere(test):
    """Kernel tests of this name are about machines without a GPU."""
    return "Anywhere." in test


def why_not(stages, name):
    """Why a stage left no figure, or '' when it passed."""
    for stage in stages:
        if stage["name"] == name:
            return "" if stage["status"] == "passed" else f"{stage['status']}: {stage['reason']}".removeprefix(
                "not run: ")
    return "the stage was not reached"


def goals_of(measurements, stages):
    """One line for each figure that a goal asks for, measured or not."""
    lines = []
    for name, cases, wanted, figure, sense, goal, stage in GOALS:
        for case in cases:
            rows = [r for r in measurements if r["case"] == case and r["status"] == "measured" and wanted(r)]
            if not rows:
                reason = why_not(stages, "benchmarks") or "the benchmark printed no such figure"
                lines.append({"goal": name, "case": case, "wanted": f"{sense} {goal:.2f}", "figure": None,
                              "status": "not run", "reason": reason})
            for row in rows:
                value = figure(row, measurements)
                line = {"goal": name, "case": f"{case} {row['dtype']} {row['shape']}", "wanted": f"{sense} {goal:.2f}",
                        "figure": None if value is None else round(value, 4), "reason": ""}
                if value is None:
                    line["status"] = "not run"
                    line["reason"] = why_not(stages, stage) or "what it is compared with was not measured"
                else:
                    line["status"] = "met" if (value >= goal if sense == ">=" else value <= goal) else "missed"
                lines.append(line)
    for tool in ("memcheck", "racecheck"):
        stage = next((s for s in stages if s["name"] == tool), {"status": "not run", "reason": "not reached"})
        status = {"passed": "met", "failed": "missed"}.get(stage["status"], "not run")
        lines.append({"goal": f"compute-sanitizer {tool}", "case": "chosen kernel tests",
                      "wanted": "no error", "figure": None if status == "not run" else stage.get("errors"),
                      "status": status, "reason": stage["reason"]})
    return lines


def problems(results):
    """What is wrong with results.json; an empty list when nothing is."""
    found = []

    def need(where, value, kinds, choices=None):
        if not isinstance(value, kinds) or isinstance(value, bool) and bool not in (
                kinds if isinstance(kinds, tuple) else (kinds,)):
            found.append(f"{where}: {value!r} is no {kinds}")
        elif choices is not None and value not in choices:
            found.append(f"{where}: {value!r} is none of {choices}")

    number, text, maybe = (int, float), str, type(None)
    need("schema", results.get("schema"), text, [SCHEMA])
    for key in ("date", "commit"):
        need(key, results.get(key), text)
    need("dry_run", results.get("dry_run"), bool)
    machine = results.get("machine", {})
    need("machine.gpu", machine.get("gpu"), (text, maybe))
    need("machine.missing", machine.get("missing"), list)
    need("stages", [s.get("name") for s in results.get("stages", [])], list, [STAGES])
    for s in results.get("stages", []):
        need(f"stage {s.get('name')}: status", s.get("status"), text, ["passed", "failed", "not run"])
        need(f"stage {s.get('name')}: seconds", s.get("seconds"), number)
        need(f"stage {s.get('name')}: reason", s.get("reason"), text)
        if s.get("status") != "passed" and not s.get("reason"):
            found.append(f"stage {s.get('name')}: {s.get('status')}, without a reason")
    tests = results.get("tests", {})
    for key in ("passed", "failed", "skipped", "not_run"):
        need(f"tests.{key}", tests.get(key), list)
    for i, r in enumerate(results.get("measurements", [])):
        need(f"measurements[{i}].case", r.get("case"), text)
        need(f"measurements[{i}].status", r.get("status"), text, ["measured", "failed", "not run"])
        if r.get("status") == "measured":
            need(f"measurements[{i}].ms", r.get("ms"), number)
        elif not r.get("reason"):
            found.append(f"measurements[{i}]: {r.get('status')}, without a reason")
    if not results.get("goals"):
        found.append("goals: none")
    for i, g in enumerate(results.get("goals", [])):
        need(f"goals[{i}].status", g.get("status"), text, ["met", "missed", "not run"])
        need(f"goals[{i}].figure", g.get("figure"), (*number, maybe))
        if g.get("status") == "not run" and (g.get("figure") is not None or not g.get("reason")):
            found.append(f"goals[{i}]: not run, with a figure or without a reason")
        if g.get("status") in ("met", "missed") and g.get("figure") is None and not g.get("reason"):
            found.append(f"goals[{i}]: {g.get('status')}, without a figure")
    if machine.get("gpu") is None:  # nothing that needs a GPU can have been seen
        seen = [s["name"] for s in results.get("stages", []) if s.get("status") == "passed" and s["name"] not in
                ("environment", "build")]
        seen += [r["case"] for r in results.get("measurements", []) if r.get("status") == "measured"]
        seen += [g["goal"] for g in results.get("goals", []) if g.get("status") != "not run"]
        seen += [n for n in tests.get("passed") or [] if not runs_anywhere(n)]
        if seen:
            found.append(f"without a GPU, yet said to have run: {', '.join(seen)}")
    return found


def measurement_of(line):
    """A JSON line of a benchmark as a row of results.json."""
    for key, status in (("not_run", "not run"), ("error", "failed")):
        if key in line:
            return {**{k: v for k, v in line.items() if k != key}, "status": status, "reason": line[key]}
    return {**line, "status": "measured"}


def cells(*values):
    return "| " + " | ".join(str(v).replace("|", "/") for v in values) + " |"


def table(results):
    """table.md."""
    machine, tests = results["machine"], results["tests"]
    out = [f"# {machine['gpu'] or 'No GPU'}: gpu-check of {results['date']}", "",
           f"Commit {results['commit']}. Made by `jobs/gpu-check`; figures and goals are explained in "
           "benchmarks/README.md.", ""]
    out += [f"- {key}: {value}" for key, value in machine.items() if key not in ("gpu", "missing") and value]
    out += [f"- missing: {text}" for text in machine["missing"]]
    counts = {s: sum(g["status"] == s for g in results["goals"]) for s in ("met", "missed", "not run")}
    out += ["", "## Goals", "", ", ".join(f"{n} {s}" for s, n in counts.items()) + ".", "",
            cells("goal", "case", "wanted", "figure", "status"), cells(*["---"] * 5)]
    for g in results["goals"]:
        status = f"not run: {g['reason']}" if g["status"] == "not run" else g["status"].upper() if g[
            "status"] == "missed" else g["status"]
        if g["status"] == "missed" and g["reason"]:
            status += f": {g['reason']}"
        out.append(cells(g["goal"], g["case"], g["wanted"], "" if g["figure"] is None else g["figure"], status))
    out += ["", "## Stages", "", cells("stage", "status", "seconds", "reason"), cells(*["---"] * 4)]
    out += [cells(s["name"], s["status"], f"{s['seconds']:.0f}", s["reason"]) for s in results["stages"]]
    out += ["", "## Kernel tests", "",
            f"{len(tests['passed'])} passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped, "
            f"{len(tests['not_run'])} not run.", ""]
    out += [f"- FAILED {name}" for name in tests["failed"]] + [f"- skipped {name}" for name in tests["skipped"]]
    out += ["", "## Measurements", "",
            cells("case", "type", "shape", "ms (min to max)", "rate", "reference ms", "status"),
            cells(*["---"] * 7)]
    for r in results["measurements"]:
        if r["status"] != "measured":
            out.append(cells(r["case"], r.get("dtype", ""), r.get("shape", ""), "", "", "",
                             f"{r['status']}: {r['reason']}"))
            continue
        rate = ""
        if r.get("gflop"):
            rate = f"{r['gflop'] / r['ms']:.1f} TFLOP/s"
        elif r.get("gigabytes"):
            share = share_of_copy(r, results["measurements"])
            rate = f"{r['gigabytes'] / r['ms'] * 1e3:.0f} GB/s ({r.get('bytes_formula', '')} bytes)"
            rate += "" if share is None else f", {100 * share:.0f} % of a copy"
        spread = f" ({r['min_ms']:.4g} to {r['max_ms']:.4g})" if "min_ms" in r else ""
        reference = f"{r['reference_ms']:.4g} ({r.get('reference', 'reference')})" if r.get("reference_ms") else ""
        out.append(cells(r["case"], r["dtype"], r["shape"], f"{r['ms']:.4g}{spread}", rate, reference, "measured"))
    if not results["measurements"]:
        out.append(cells("all", "", "", "", "", "", "not run: " + (
            why_not(results["stages"], "benchmarks") or "nothing was printed")))
    return "\n".join(out) + "\n"
