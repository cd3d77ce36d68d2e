"""What was not run is never reported as passed, and a missed goal is shown as missed: jobs/gpu-check and its report."""

import argparse
import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("gpu_check", str(ROOT / "jobs/gpu-check"))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
loader.exec_module(gpu_check)
report = gpu_check.report

SHAPE = "D2048 F1408 E64 rows 2048 each"


def stages(**statuses):
    return [{"name": name, "status": statuses.get(name, ("passed", ""))[0], "seconds": 1.0, "errors": 0,
             "reason": statuses.get(name, ("passed", ""))[1]} for name in report.STAGES]


def results(measurements, all_stages, gpu="A GPU", **tests):
    return {"schema": report.SCHEMA, "date": "2026-01-01 00:00", "commit": "0", "dry_run": False,
            "machine": {"gpu": gpu, "missing": []}, "stages": all_stages,
            "tests": {"passed": [], "failed": [], "skipped": [], "not_run": [], **tests},
            "measurements": measurements, "goals": report.goals_of(measurements, all_stages)}


def measured(case, ms, **more):
    return {"case": case, "dtype": "bf16", "shape": SHAPE, "status": "measured", "ms": ms, "rows_per_expert": 2048,
            **more}


def nothing_ran():
    return stages(**{name: ("not run", "no GPU") for name in report.STAGES[2:]})


class Report(unittest.TestCase):
    def goal(self, measurements, text, **statuses):
        lines = report.goals_of(measurements, stages(**statuses))
        return next(g for g in lines if text in g["goal"] + " " + g["case"])

    def test_without_a_gpu_everything_is_not_run(self):
        r = results([], nothing_ran(), gpu=None)
        self.assertEqual(report.problems(r), [])
        self.assertEqual({g["status"] for g in r["goals"]}, {"not run"})
        self.assertEqual({g["reason"] for g in r["goals"]}, {"no GPU"})
        goals = report.table(r).split("## Stages")[0]
        self.assertNotIn("| met |", goals)
        self.assertIn("0 met, 0 missed", goals)

    def test_met_and_missed(self):
        for ms, status in ((1.0, "met"), (1.1, "met"), (1.25, "missed")):
            g = self.goal([measured("experts_forward", ms, reference_ms=1.0)], "cuBLASLt")
            self.assertEqual((g["status"], g["figure"]), (status, round(1 / ms, 4)))
        r = results([measured("experts_forward", 2.0, reference_ms=1.0)], stages())
        self.assertEqual(report.problems(r), [])
        self.assertIn("| MISSED |", report.table(r))

    def test_a_layer_may_lose_little_time(self):
        for ms, status in ((1.1, "met"), (1.3, "missed")):
            g = self.goal([measured("moe_layer_forward", ms, reference_ms=1.0)], "layer")
            self.assertEqual(g["status"], status)

    def test_bandwidth_needs_the_copy(self):
        row = measured("gather_rows", 1.0, gigabytes=1.5)
        copy = measured("copy", 1.0, gigabytes=2.0)
        self.assertEqual(self.goal([row], "gather_rows")["status"], "not run")
        self.assertEqual(self.goal([row, copy], "gather_rows")["status"], "missed")
        self.assertEqual(self.goal([{**row, "ms": 0.8}, copy], "gather_rows")["status"], "met")

    def test_torch_is_compared_on_its_own_shape(self):
        ours = measured("experts_backward", 1.0, reference_ms=1.0)
        other = measured("torch_grouped_mm_backward", 2.0) | {"shape": "another"}
        g = next(g for g in report.goals_of([ours, other], stages(torch=("not run", "no torch")))
                 if "torch" in g["goal"] and "backward" in g["case"])
        self.assertEqual((g["status"], g["reason"]), ("not run", "no torch"))
        g = next(g for g in report.goals_of([ours, measured("torch_grouped_mm_backward", 0.9)], stages())
                 if "torch" in g["goal"] and "backward" in g["case"])
        self.assertEqual(g["status"], "missed")

    def test_lines_that_are_no_figures(self):
        self.assertEqual(report.measurement_of({"case": "a", "not_run": "why"}),
                         {"case": "a", "status": "not run", "reason": "why"})
        self.assertEqual(report.measurement_of({"case": "a", "error": "why"})["status"], "failed")

    def test_sanitizers(self):
        for status, goal in (("passed", "met"), ("failed", "missed"), ("not run", "not run")):
            self.assertEqual(self.goal([], "racecheck", racecheck=(status, "why"))["status"], goal)

    def test_claims_without_a_gpu_are_found(self):
        self.assertTrue(report.problems(results([], stages(), gpu=None)))
        self.assertTrue(report.problems(results([], nothing_ran(), gpu=None, passed=["CudaX.Y"])))
        self.assertFalse(report.problems(results([], nothing_ran(), gpu=None, passed=["CudaCoreAnywhere.Y"])))
        self.assertTrue(report.problems(results([measured("copy", 1.0)], nothing_ran(), gpu=None)))

    def test_not_run_needs_a_reason(self):
        self.assertTrue(report.problems(results([], stages(tests=("not run", "")))))
        r = results([], stages())
        r["goals"][0].update(status="not run", figure=0.5)
        self.assertTrue(report.problems(r))


class Tests(unittest.TestCase):
    """The stage of the kernel tests, with a program made up."""

    def stage(self, script, gpu):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "tests/cuda/cuda_tests"
            program.parent.mkdir(parents=True)
            program.write_text("#!/bin/sh\n" + script)
            program.chmod(0o755)
            check = gpu_check.Check(argparse.Namespace(build=folder, dry_run=False, minutes=1, carry=None, out=None))
            check.machine["gpu"] = gpu
            check.stages["build"].passed()
            check.kernel_tests(check.stages["tests"])
            return check.stages["tests"], check.tests

    LIST = 'case "$*" in *list*) printf "S.\\n  A\\n  B\\n  C\\n"; exit 0;; esac\n'
    A_PASSES = 'case "$*" in *S.A*) echo "[ RUN      ] S.A"; echo "[       OK ] S.A (1 ms)";; esac\n'

    def test_a_crash_loses_one_test(self):
        stage, tests = self.stage(
            self.LIST + self.A_PASSES + 'case "$*" in *S.B*) echo "[ RUN      ] S.B"; kill -9 $$;; esac\n'
            'echo "[ RUN      ] S.C"; echo "[       OK ] S.C (1 ms)"\n', "A GPU")
        self.assertEqual(stage.status, "failed")
        self.assertEqual(tests["passed"], ["S.A", "S.C"])
        self.assertTrue(tests["failed"][0].startswith("S.B (ended the program"))

    def test_all_skipped_is_no_pass(self):
        skip = self.LIST + 'for t in A B C; do echo "[ RUN      ] S.$t"; echo "[  SKIPPED ] S.$t (0 ms)"; done\n'
        self.assertEqual(self.stage(skip, None)[0].status, "not run")
        self.assertEqual(self.stage(skip, "A GPU")[0].status, "failed")

    def test_a_program_that_does_not_start(self):
        self.assertEqual(self.stage("exit 127\n", "A GPU")[0].status, "failed")
        self.assertEqual(self.stage(self.LIST + "exit 127\n", "A GPU")[0].status, "failed")


class Benchmarks(unittest.TestCase):
    def test_what_was_printed_before_the_end_counts(self):
        with tempfile.TemporaryDirectory() as folder:
            check = gpu_check.Check(argparse.Namespace(build=folder, dry_run=False, minutes=1, carry=None, out=None))
            stage = check.stages["benchmarks"]
            line = json.dumps({"case": "copy", "ms": 1.0})
            check.measure(stage, ["sh", "-c", f"echo '{line}'; echo '{{\"case\": \"cut'; exit 3"], 10, ours=True)
            self.assertEqual(stage.status, "failed")
            self.assertEqual([r["case"] for r in check.measurements], ["copy"])
            self.assertIn("exit code 3: {", stage.reason)  # what it said, not the command


if __name__ == "__main__":
    unittest.main()
