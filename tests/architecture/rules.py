"""The rules of the house that a machine can check. `rules.py RULE` checks one of them; `rules.py --list` names all.

Who may include whom stands in src/CMakeLists.txt (DEPS of each room): that table is read here, so that there is
one. What must never be added to it is FORBIDDEN below.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_LINES = 400
MAX_README_LINES = 40
CODE = {".hpp", ".cpp", ".cu", ".cuh", ".py", ".cmake", ".sh"}
TEXT = CODE | {".txt", ".md", ".json", ".ini", ".in", ".supp", ""}
SKIPPED = {".git", "run", "data", ".venv", "__pycache__"}  # at the root: what .gitignore leaves out
BANNED_FOLDERS = {"util", "utils", "common", "helpers", "misc"}

# Whatever the table says: (room, what it must not reach, directly or through others).
FORBIDDEN = [("ops", "comm"), ("comm", "ops"), ("train", "collab"), ("store", "nn")]

# Third-party header -> where it may be included (prefixes of the path). What is neither here nor of the standard
# library or POSIX is refused: a new dependency begins with a line here and one in packages.txt.
THIRD_PARTY = {
    r"boost/context/.*": ["tests/support/cudasim/"],
    r"boost/.*": ["src/config/", "data_prep/options.cpp"],
    r"cud\w*\.h|cublasLt\.h|nccl\.h|driver_types\.h|vector_types\.h": [
        "include/moecollab/core/cuda_check.cuh", "include/moecollab/core/launch.cuh", "src/core/cuda/", "src/ops/cuda/",
        "src/comm/cuda/", "tests/cuda/", "tests/support/cudasim/", "benchmarks/"],
    r"cudasim\.hpp": ["include/moecollab/core/launch.cuh"],
    r"mpi\.h": ["src/comm/", "tests/support/mpi_main.cpp", "tests/support/cudasim/nccl_on_host", "benchmarks/comm/"],
    r"nccl\.h": ["src/comm/cuda/", "tests/support/cudasim/nccl_on_host"],
    r"hdf5\.h|H5\w*\.h": ["src/h5/", "tests/h5/"],
    r"dnnl\.hpp|dnnl\.h|oneapi/dnnl/.*": ["src/ops/cpu/gemm", "benchmarks/ops/"],
    r"omp\.h": ["src/core/", "src/ops/", "src/nn/", "src/train/", "src/app/", "data_prep/", "tests/",
                "benchmarks/"],
    r"Random123/.*": ["src/core/", "tests/core/"],
    r"fmt/.*": ["src/", "data_prep/", "tests/", "benchmarks/"],
    r"nlohmann/.*": ["src/store/", "src/report/", "src/collab/", "src/data/", "src/app/", "data_prep/", "tests/",
                     "benchmarks/"],
    r"xxhash\.h": ["src/store/", "src/data/", "data_prep/", "tests/"],
    r"sentencepiece_\w+\.h": ["src/data/", "data_prep/"],
    r"zlib\.h": ["data_prep/"],
    r"gtest/.*|gmock/.*": ["tests/"],
}
STANDARD = set("""
algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits
clocale cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint
cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution filesystem forward_list fstream
functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map memory
memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex scoped_allocator
semaphore set shared_mutex source_location span sstream stack stdexcept stop_token streambuf string string_view
syncstream system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray
variant vector version""".split())
POSIX = re.compile(r"(sys|netinet|arpa|linux)/\w+\.h|(unistd|stdlib|fcntl|signal|dirent|poll|pthread|sched|spawn|"
                   r"termios|dlfcn|execinfo|fenv|immintrin|cpuid|link|ucontext|glob|pwd|netdb)\.h")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.MULTILINE)


def files(*folders):
    """Files of the tree as (path relative to the root with '/', suffix); build trees and run output left out."""
    starts = [ROOT / f for f in folders] if folders else [
        p for p in ROOT.iterdir() if p.name not in SKIPPED and not p.name.startswith("build")]
    for start in starts:
        for path in sorted([start] if start.is_file() else start.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.suffix


def read(name):
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


def sources(*folders):
    for name, suffix in files(*(f for f in folders if (ROOT / f).exists())):
        if suffix in {".hpp", ".cpp", ".cu", ".cuh"}:
            yield name


def room_of(name):
    """include/moecollab/<room>/... and src/<room>/... belong to a room; anything else does not."""
    match = re.match(r"(?:include/moecollab|src)/(\w+)/", name)
    return match.group(1) if match else None


def room_table():
    """room -> rooms it may include, itself not listed, from src/CMakeLists.txt. `app` may include every room."""
    table = {}
    for line in re.findall(r"^moecollab_room\(([^)]*)\)", read("src/CMakeLists.txt"), re.MULTILINE):
        words = line.split()
        deps = words[words.index("DEPS") + 1:] if "DEPS" in words else []
        table[words[0]] = set(deps[:deps.index("PRIVATE")] if "PRIVATE" in deps else deps)
    table["app"] = set(table)
    return table


def reach(table, room):
    seen, todo = set(), [room]
    while todo:
        for dep in table[todo.pop()] - seen:
            seen.add(dep)
            todo.append(dep)
    return seen


def table_is_sound():
    """Every room may use core, no room reaches itself, and the pairs that must never meet do not."""
    table = room_table()
    for room in table:
        if room in reach(table, room):
            yield f"src/CMakeLists.txt: room {room} depends on itself through {sorted(table[room])}"
        if room not in ("core", "app") and "core" not in table[room]:
            yield f"src/CMakeLists.txt: room {room} does not list core"
    for room, other in FORBIDDEN:
        if other in reach(table, room):
            yield f"src/CMakeLists.txt: {room} must never reach {other}"
    for folder in ("src", "include/moecollab"):
        for path in sorted((ROOT / folder).iterdir()):
            if path.is_dir() and path.name not in table:
                yield f"{folder}/{path.name}: a room that the table in src/CMakeLists.txt does not know"


def include_directions():
    """A file includes its own room and the rooms that the table allows; of other rooms only the public door."""
    table = room_table()
    table["data_prep"] = {"data", "h5", "core"}
    for name in sources("include", "src", "data_prep"):
        room = room_of(name) or "data_prep"
        for _, target in INCLUDE.findall(read(name)):
            if not name.startswith("data_prep/") and target.startswith(("data_prep/", "tests/", "benchmarks/")):
                yield f"{name}: includes {target}, which is no part of the library"
                continue
            match = re.match(r"moecollab/(\w+)/", target)
            public = match is not None
            other = match.group(1) if match else target.split("/")[0] if "/" in target else None
            if other is None or other not in table or other == room:
                continue
            if not public:
                yield f"{name}: {target} is private to room {other}; use include/moecollab/{other}/"
            elif room not in table or other not in table[room]:
                allowed = ", ".join(sorted(table.get(room, ()))) or "nothing"
                yield f"{name}: {room} may not include {other} (it may include: {allowed})"


def includes_can_be_found():
    """A quoted include is a path from include/ or src/, or a file beside the one that includes it; never "../"."""
    for name in sources("include", "src", "data_prep", "benchmarks"):
        here = name.rsplit("/", 1)[0]
        places = ["include"] if name.startswith("include/") else ["include", "src", "", here]
        for quote, target in INCLUDE.findall(read(name)):
            if quote == '"' and (".." in target or not any((ROOT / place / target).is_file() for place in places)):
                yield f'{name}: no file for #include "{target}"; write the path from include/ or src/'


def third_party():
    """Third-party headers stay in the rooms that wrap them; public headers have none."""
    for name in sources("include", "src", "data_prep", "tests", "benchmarks"):
        for quote, target in INCLUDE.findall(read(name)):
            if quote == '"' or target in STANDARD:
                continue
            places = next((v for k, v in THIRD_PARTY.items() if re.fullmatch(k, target)), None)
            if places is None and POSIX.fullmatch(target):
                places = ["src/", "data_prep/", "tests/", "benchmarks/"]
            if places is None:
                yield f"{name}: <{target}> is neither standard C++ nor POSIX nor a dependency listed in this test"
            elif not name.startswith(tuple(places)):
                yield f"{name}: <{target}> may be included in {', '.join(places)} only"


def file_length():
    """No file of code is longer than it can be read in one go."""
    for name, suffix in files():
        first = read(name)[:2] if suffix == "" else ""
        if suffix in CODE or first == "#!" or name.endswith("CMakeLists.txt"):
            lines = read(name).count("\n")
            if lines > MAX_LINES:
                yield f"{name}: {lines} lines, more than {MAX_LINES}: split it by purpose"


def folders():
    """No folder for things that have no place."""
    for name, _ in files():
        for part in BANNED_FOLDERS & set(name.split("/")[:-1]):
            yield f"{name}: a folder named {part} says nothing; put the file into the room it serves"


def readmes():
    """Every room explains itself, briefly."""
    for room in sorted({room_of(name) for name in sources("src", "include")} - {None}):
        readme = ROOT / "src" / room / "README.md"
        if not readme.is_file():
            yield f"src/{room}/README.md is missing: purpose, invariants, who may include it, what was dropped"
        elif (lines := readme.read_text(encoding="utf-8").count("\n")) > MAX_README_LINES:
            yield f"src/{room}/README.md: {lines} lines, more than {MAX_README_LINES}"


def no_notes_to_self():
    """What is left to do belongs into an issue."""
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    for name, suffix in files():
        if suffix in TEXT and name != "LICENSE":
            for number, line in enumerate(read(name).splitlines(), 1):
                if marks.search(line):
                    yield f"{name}:{number}: {marks.search(line).group()}"


def code_style():
    """What the layout tool does not see: guards, virtual functions, using namespace in headers."""
    for name in sources("include", "src"):
        text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', "", read(name), flags=re.DOTALL)
        if name.endswith((".hpp", ".cuh")):
            if not re.search(r"^#pragma once$", text, re.MULTILINE):
                yield f"{name}: a header without #pragma once"
            if re.search(r"^\s*using namespace\b", text, re.MULTILINE):
                yield f"{name}: using namespace in a header"
        if re.search(r"\bvirtual\b", text):
            yield f"{name}: a virtual function; this house has none"


RULES = [table_is_sound, include_directions, includes_can_be_found, third_party, file_length, folders, readmes,
         no_notes_to_self, code_style]


def main(arguments):
    by_name = {rule.__name__: rule for rule in RULES}
    if arguments == ["--list"]:
        print(" ".join(by_name))
        return 0
    if len(arguments) != 1 or arguments[0] not in by_name:
        print(f"usage: rules.py --list | {' | '.join(by_name)}", file=sys.stderr)
        return 64
    broken = list(by_name[arguments[0]]())
    for message in broken:
        print(message)
    print(f"{arguments[0]}: {len(broken)} broken. {by_name[arguments[0]].__doc__.strip()}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
