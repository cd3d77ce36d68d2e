"""Every public header compiles alone, twice over, without a warning: `headers_alone.py COMPILER INCLUDE_FOLDER`."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

FLAGS = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-x", "c++", "-"]


def compile_alone(compiler, include, header):
    line = f'#include "{header.relative_to(include).as_posix()}"\n'
    run = subprocess.run([compiler, f"-I{include}", *FLAGS], input=line * 2, capture_output=True, text=True,
                         check=False)
    return header, run.returncode, run.stderr


def main(compiler, include):
    include = pathlib.Path(include).resolve()
    headers = sorted(include.rglob("*.hpp"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda header: compile_alone(compiler, include, header), headers))
    broken = [(header, text) for header, code, text in results if code != 0]
    for header, text in broken:
        print(f"{header} does not compile alone:\n{text}")
    print(f"{len(headers)} public headers, {len(broken)} broken")
    return 1 if broken or not headers else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
