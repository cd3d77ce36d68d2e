"""Machine code of kernels holds the instructions they were written for, and nothing spills.

sass_test.py --nvcc NVCC --arch 90 [--include DIR]... FILE.cu RULE...

compiles FILE for that architecture. A RULE is KERNEL:NAME>=COUNT,...: in every kernel whose mangled name contains the
regular expression KERNEL, the instruction NAME stands at least COUNT times; some kernel must match. No kernel of the
file may spill registers or keep arrays in local memory. The code is read from the .text sections of the ELF file that
nvcc writes: from Volta (sm_70) to Blackwell (sm_100) an instruction takes 16 bytes, its opcode the low 12 bits.
"""

import argparse
import collections
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

OPCODES = {
    0x223: "FFMA",        # f32 multiply-add
    0x23C: "HMMA",        # mma.sync
    0x83B: "LDSM",        # ldmatrix
    0xFAE: "LDGSTS",      # cp.async
    0x9AF: "LDGDEPBAR",   # cp.async.commit_group
    0x91A: "DEPBAR",      # cp.async.wait_group
    0xB1D: "BAR",         # __syncthreads
    0xF89: "SHFL",        # __shfl_xor_sync
    0x387: "STL", 0x983: "LDL",  # local memory
}


def text_sections(elf):
    """(kernel, its code) of an ELF file."""
    if elf[:4] != b"\x7fELF" or elf[4] != 2:
        raise ValueError("not a 64-bit ELF file")
    start, = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        text = elf[strings + name:elf.index(b"\0", strings + name)].decode()
        if text.startswith(".text."):
            yield text.removeprefix(".text."), elf[offset:offset + length]


def count_instructions(code):
    counts = collections.Counter()
    for i in range(0, len(code), 16):
        counts[OPCODES.get(struct.unpack_from("<Q", code, i)[0] & 0xFFF, "other")] += 1
    return counts


def compile_kernels(nvcc, arch, includes, source):
    """The cubin, and what ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder) / "kernels.cubin"
        command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "--cubin", f"-arch=sm_{arch}", "-Xptxas", "-v",
                   *(f"-I{include}" for include in includes), "-o", str(cubin), source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return cubin.read_bytes(), done.stdout + done.stderr


def broken_rules(kernels, messages, rules):
    for line in messages.splitlines():
        if numbers := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if any(int(n) > 0 for n in numbers.groups()):
                yield f"local memory is used: {line.strip()}"
    for kernel, counts in kernels.items():
        if counts["STL"] + counts["LDL"] > 0:
            yield f"{kernel}: {counts['STL']} stores to and {counts['LDL']} loads from local memory"
    for rule in rules:
        pattern, _, wanted = rule.partition(":")
        matching = {kernel: counts for kernel, counts in kernels.items() if re.search(pattern, kernel)}
        if not matching:
            yield f"no kernel matches {pattern}"
        for name, least in re.findall(r"(\w+)>=(\d+)", wanted):
            if name not in OPCODES.values():
                yield f"{rule}: no instruction {name} is known here"
            for kernel, counts in matching.items():
                if counts[name] < int(least):
                    yield f"{kernel}: {counts[name]} {name}, expected at least {least}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("source")
    parser.add_argument("rules", nargs="*")
    arguments = parser.parse_args()
    cubin, messages = compile_kernels(arguments.nvcc, arguments.arch, arguments.include, arguments.source)
    kernels = {kernel: count_instructions(code) for kernel, code in text_sections(cubin)}
    for kernel, counts in kernels.items():
        print(f"{kernel}: {counts.total()} instructions,",
              *(f"{name} {n}" for name, n in sorted(counts.items()) if name != "other"))
    broken = list(broken_rules(kernels, messages, arguments.rules))
    print("\n".join(broken))
    return 1 if broken or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
