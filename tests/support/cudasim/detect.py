"""A detector finds a mistake and lets its cure pass: `detect.py PROGRAM WHAT TEXT`.

PROGRAM WHAT wrong must fail and say TEXT; PROGRAM WHAT right must end with 0.
"""

import subprocess
import sys


def run(program, what, how):
    done = subprocess.run([program, what, how], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False, timeout=100)
    print(f"---- {what} {how}: exit code {done.returncode}\n{done.stdout}")
    return done.returncode, done.stdout


def main(program, what, text):
    code, output = run(program, what, "wrong")
    found = code != 0 and text in output
    if not found:
        print(f"{what}: the mistake was not found; it should fail and say: {text}")
    code, _ = run(program, what, "right")
    if code != 0:
        print(f"{what}: the right program fails")
    return 0 if found and code == 0 else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
