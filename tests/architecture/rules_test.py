"""Can the rules fail? A small tree that breaks each of them once, next to one that breaks none."""

import pathlib
import tempfile
import unittest

import rules

TABLE = """moecollab_room(core PRIVATE OpenMP)
moecollab_room(ops DEPS core PRIVATE dnnl)
moecollab_room(comm DEPS core)
moecollab_room(nn DEPS ops comm core)
moecollab_room(store DEPS comm core)
moecollab_room(train DEPS nn core)
moecollab_room(collab DEPS train store core)
"""
HEADER = "#pragma once\n"


class Rules(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.kept_root, rules.ROOT = rules.ROOT, pathlib.Path(self.folder.name)
        self.write("src/CMakeLists.txt", TABLE)
        self.write("include/moecollab/core/tensor.hpp", HEADER + "#include <vector>\n")
        self.write("include/moecollab/ops/linear.hpp", HEADER + '#include "moecollab/core/tensor.hpp"\n')
        self.write("include/moecollab/comm/group.hpp", HEADER)
        self.write("src/ops/check.hpp", HEADER)
        self.write("src/ops/cpu/gemm.cpp", '#include <dnnl.hpp>\n#include "ops/check.hpp"\n')
        self.write("src/nn/layer.cpp", '#include "moecollab/ops/linear.hpp"\n#include <sys/mman.h>\n')
        for room in ("core", "ops", "comm", "nn"):
            self.write(f"src/{room}/README.md", "# purpose\n")

    def tearDown(self):
        rules.ROOT = self.kept_root
        self.folder.cleanup()

    def write(self, name, text):
        path = rules.ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def expect(self, rule, *parts):
        broken = list(rule())
        self.assertEqual(len(broken), 1, broken)
        for part in parts:
            self.assertIn(part, broken[0])

    def test_a_sound_tree_breaks_nothing(self):
        for rule in rules.RULES:
            self.assertEqual(list(rule()), [], rule.__name__)

    def test_upward_include(self):
        self.write("src/ops/linear.cpp", '#include "moecollab/nn/layer.hpp"\n')
        self.expect(rules.include_directions, "ops may not include nn")

    def test_a_dependency_of_a_dependency_is_not_allowed_by_itself(self):
        self.write("src/train/step.cpp", '#include "moecollab/ops/linear.hpp"\n')
        self.expect(rules.include_directions, "train may not include ops")

    def test_private_header_of_another_room(self):
        self.write("src/nn/layer.cpp", '#include "ops/check.hpp"\n')
        self.expect(rules.include_directions, "private to room ops")

    def test_data_prep_is_never_included(self):
        self.write("src/nn/layer.cpp", '#include "data_prep/reader.hpp"\n')
        self.expect(rules.include_directions, "no part of the library")

    def test_forbidden_pair_through_others(self):
        self.write("src/CMakeLists.txt", TABLE.replace("store DEPS comm", "store DEPS train"))
        self.expect(rules.table_is_sound, "store must never reach nn")

    def test_cycle_in_the_table(self):
        self.write("src/CMakeLists.txt", TABLE.replace("comm DEPS core", "comm DEPS core comm"))
        self.expect(rules.table_is_sound, "comm depends on itself")

    def test_unknown_room(self):
        self.write("src/widgets/a.cpp", "")
        self.expect(rules.table_is_sound, "widgets")

    def test_include_without_a_file(self):
        self.write("src/nn/layer.cpp", '#include "linear.hpp"\n')
        self.expect(rules.includes_can_be_found, "linear.hpp")
        self.write("src/nn/layer.cpp", '#include "../ops/check.hpp"\n')
        self.expect(rules.includes_can_be_found, "../ops/check.hpp")

    def test_include_beside_the_file(self):
        self.write("src/ops/linear.cpp", '#include "check.hpp"\n')
        self.assertEqual(list(rules.includes_can_be_found()), [])

    def test_third_party_in_a_public_header(self):
        self.write("include/moecollab/comm/group.hpp", HEADER + "#include <mpi.h>\n")
        self.expect(rules.third_party, "include/moecollab/comm/group.hpp", "mpi.h")

    def test_third_party_outside_its_room(self):
        for header in ("mpi.h", "hdf5.h", "dnnl.hpp", "boost/program_options.hpp"):
            self.write("src/nn/layer.cpp", f"#include <{header}>\n")
            self.expect(rules.third_party, header)

    def test_posix_in_a_public_header(self):
        self.write("include/moecollab/comm/group.hpp", HEADER + "#include <unistd.h>\n")
        self.expect(rules.third_party, "unistd.h")

    def test_unknown_dependency(self):
        self.write("src/nn/layer.cpp", "#include <eigen3/Eigen/Core>\n")
        self.expect(rules.third_party, "neither")

    def test_long_file(self):
        self.write("src/nn/layer.cpp", "\n" * (rules.MAX_LINES + 1))
        self.expect(rules.file_length, "401 lines")

    def test_long_script_without_a_suffix(self):
        self.write("jobs/run", "#!/usr/bin/env bash\n" + "\n" * rules.MAX_LINES)
        self.expect(rules.file_length, "jobs/run")

    def test_banned_folder(self):
        self.write("tests/common/a.cpp", "")
        self.expect(rules.folders, "common")

    def test_missing_and_long_readme(self):
        self.write("src/nn/README.md", "\n" * 41)
        self.expect(rules.readmes, "41 lines")
        (rules.ROOT / "src/nn/README.md").unlink()
        self.expect(rules.readmes, "src/nn/README.md is missing")

    def test_note_to_self(self):
        self.write("src/nn/layer.cpp", "// TO" + "DO later\n")
        self.expect(rules.no_notes_to_self, "src/nn/layer.cpp:1")

    def test_style(self):
        self.write("src/ops/check.hpp", "// #pragma once\n")
        self.expect(rules.code_style, "#pragma once")
        self.write("src/ops/check.hpp", HEADER + "struct A { virtual void f(); };  // virtual\n")
        self.expect(rules.code_style, "virtual")
        self.write("src/ops/check.hpp", HEADER + 'const char* kName = "virtual";  // virtual\n')
        self.assertEqual(list(rules.code_style()), [])


if __name__ == "__main__":
    unittest.main()
