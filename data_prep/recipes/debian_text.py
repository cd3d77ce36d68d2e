"""Turns unpacked Debian packages into one JSONL file per domain. Called by debian-text."""

import glob
import gzip
import json
import os
import re
import string
import struct
import subprocess
import sys
import sysconfig
import zlib

LICENCE = re.compile(
    r"copyright|warrant(y|ies)|general public licen[cs]e|permission to use|is hereby granted|"
    r"runtime library exception|under section 7|licen[cs]ed? (to|under)|redistribut", re.IGNORECASE)


def decode(data):
    """UTF-8 where it is that, else line by line, with Windows-1252 for the lines that are not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    lines = []
    for line in data.split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
    return "\n".join(lines)


def tidy(text):
    """Unix newlines, no control characters, no trailing blanks, no blank lines at the ends."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ufeff]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return text.strip("\n")


def only(pattern):
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        sys.exit(f"debian-text: nothing matches {pattern}")
    return found


def dictionary(tree, package, name):
    """Entries of a dictd dictionary, in the order of the file; several headwords may share one."""
    digits = {c: i for i, c in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")}

    def number(text):
        value = 0
        for c in text:
            value = value * 64 + digits[c]
        return value

    base = f"{tree}/{package}/usr/share/dictd/{name}"
    with gzip.open(f"{base}.dict.dz") as file:
        content = file.read()
    spans = set()
    with open(f"{base}.index", encoding="utf-8", errors="replace") as file:
        for line in file:
            word, offset, length = line.rstrip("\n").split("\t")[:3]
            if not word.startswith("00"):
                spans.add((number(offset), number(length)))
    for offset, length in sorted(spans):
        yield decode(content[offset:offset + length])


def general(tree):
    source_mark = re.compile(r"^ *\[[A-Z0-9][^\]\n]{1,40}\]\n?", re.MULTILINE)  # "[1913 Webster]" on a line of its own
    for entry in dictionary(tree, "dict-gcide", "gcide"):
        yield source_mark.sub("", entry)


def computing(tree):
    for package, name in (("dict-foldoc", "foldoc"), ("dict-jargon", "jargon"), ("dict-vera", "vera")):
        yield from dictionary(tree, package, name)


def scripture(tree):
    def bible(*options):
        # It looks for its text in the working folder first.
        command = [f"{tree}/bible-kjv/usr/bin/bible", *options, "gen1:1-rev22:21"]
        run = subprocess.run(command, cwd=f"{tree}/bible-kjv-text/usr/lib", stdin=subprocess.DEVNULL,
                             capture_output=True, check=False)
        if run.returncode != 0 or not run.stdout:
            sys.exit(f"debian-text: {command[0]} failed: {decode(run.stderr)}")
        return decode(run.stdout)

    # The pretty form has the names of the books, the other one a verse a line; both in the same order.
    books = []
    for line in bible().splitlines():
        heading = re.fullmatch(r"(\S.*) \d+", line)
        if heading and re.fullmatch(r"(\d )?[A-Z][A-Za-z ]*", heading[1]) and heading[1] not in books[-1:]:
            books.append(heading[1])
    chapter, abbreviation, number, book = [], None, None, -1
    for line in bible("-f").splitlines():
        verse = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line)
        if not verse:
            continue
        if (verse[1], verse[2]) != (abbreviation, number):
            if chapter:
                yield "\n".join(chapter)
            book += verse[1] != abbreviation
            abbreviation, number = verse[1], verse[2]
            chapter = [f"{books[book]} {number}"]
        chapter.append(f"{verse[3]} {verse[4]}")
    yield "\n".join(chapter)
    if book + 1 != len(books):
        sys.exit(f"debian-text: {book + 1} books of scripture, but {len(books)} names")


def novels(tree):
    """Character vectors in R's serialisation (XDR), each a zlib stream behind its length."""
    [path] = only(f"{tree}/r-cran-janeaustenr/**/janeaustenr/data/Rdata.rdb")
    with open(path, "rb") as file:
        content = file.read()
    at = 0
    while at < len(content):
        unpack = zlib.decompressobj()
        data = unpack.decompress(content[at + 4:]) + unpack.flush()
        at = len(content) - len(unpack.unused_data)
        if data[:2] != b"X\n":
            sys.exit(f"debian-text: {path}: not R's XDR form")
        [version] = struct.unpack_from(">i", data, 2)
        here = 14
        if version == 3:  # the native encoding follows the versions
            here += 4 + struct.unpack_from(">i", data, 14)[0]
        kind, count = struct.unpack_from(">ii", data, here)
        here += 8
        if kind & 0xFF != 16:  # not a character vector
            continue
        lines = []
        for _ in range(count):
            _, length = struct.unpack_from(">ii", data, here)
            here += 8
            lines.append(decode(data[here:here + max(0, length)]))
            here += max(0, length)
        chapter = re.compile(r"^(?=chapter [ivxlc\d]+\b)", re.IGNORECASE | re.MULTILINE)
        yield from chapter.split("\n".join(lines))


def politics(tree):
    link = re.compile(r"\[([^\]]*)\]\([^)]*\)")
    heading = re.compile(r"^(?=#+ )", re.MULTILINE)
    for path in only(f"{tree}/anarchism/usr/share/doc/anarchism/markdown/*.md*"):
        reader = gzip.open if path.endswith(".gz") else open
        with reader(path, "rb") as file:
            yield from heading.split(link.sub(r"\1", decode(file.read())))


def perl(tree):
    heading = re.compile(r"^(?==head1 )", re.MULTILINE)
    for path in only(f"{tree}/perl-doc/**/*.pod"):
        if os.path.basename(path) == "perltoc.pod":  # repeats the headings of all others
            continue
        with open(path, "rb") as file:
            yield from heading.split(decode(file.read()))


def without_licence(text, is_comment):
    """Drops the paragraphs of comment that state a licence from the head of a source file."""
    kept, paragraphs = [], text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if i >= 12 or not is_comment(paragraph.strip()):
            return "\n\n".join(kept + paragraphs[i:])
        if not LICENCE.search(paragraph):
            kept.append(paragraph)
    return "\n\n".join(kept)


def python(_tree):
    library = sysconfig.get_path("stdlib")
    skipped = re.compile(r"/(site-packages|dist-packages|test|tests|idle_test|__pycache__|lib2to3)/")
    for path in only(f"{library}/**/*.py"):
        if not skipped.search(path[len(library):]) and os.path.isfile(path):
            with open(path, "rb") as file:
                yield without_licence(decode(file.read()), lambda p: all(l.startswith("#") for l in p.split("\n")))


def cpp(_tree):
    def is_comment(paragraph):
        if paragraph.startswith("/*"):
            return paragraph.endswith("*/") and paragraph.count("/*") == 1
        return all(line.startswith("//") for line in paragraph.split("\n"))

    versions = sorted((v for v in glob.glob("/usr/include/c++/*") if os.path.basename(v).isdigit()),
                      key=lambda v: int(os.path.basename(v)))
    if not versions:
        sys.exit("debian-text: there are no C++ headers under /usr/include/c++; install g++")
    for path in only(f"{versions[-1]}/**/*"):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                yield without_licence(decode(file.read()), is_comment)


def mathematics(tree):
    with open(f"{tree}/metamath-databases/usr/share/metamath/databases/set.mm", "rb") as file:
        text = decode(file.read())
    for theorem in re.finditer(r"(\S+)\s+\$p\s", text):
        end = text.find("$.", theorem.end())
        close = text.rfind("$)", 0, theorem.start())
        begin = text.rfind("$(", 0, close)
        if end < 0 or begin < 0 or text[close + 2:theorem.start()].strip():
            continue  # no comment of its own
        indent = begin - text.rfind("\n", 0, begin) - 1
        yield re.sub(rf"^ {{{indent}}}", "", text[begin:end + 2], flags=re.MULTILINE)


DOMAINS = {f.__name__: f for f in (general, scripture, novels, politics, computing, perl, python, cpp, mathematics)}


def evenly(documents, max_bytes):
    """About `max_bytes` of them, spread over the whole."""
    sizes = [len(d.encode()) for d in documents]
    total = sum(sizes)
    if max_bytes == 0 or total <= max_bytes:
        return documents
    kept, kept_bytes, passed = [], 0, 0
    for document, size in zip(documents, sizes):
        if kept_bytes * total <= passed * max_bytes and kept_bytes + size <= max_bytes:
            kept.append(document)
            kept_bytes += size
        passed += size
    return kept


def main():
    tree, output, max_bytes, names = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    print(f"{'domain':<12} {'documents':>10} {'bytes':>12}")
    for name in names:
        documents = list(dict.fromkeys(d for d in map(tidy, DOMAINS[name](tree)) if len(d) >= 16))
        documents = evenly(documents, max_bytes)
        path = os.path.join(output, f"{name}.jsonl")
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
        print(f"{name:<12} {len(documents):>10} {sum(len(d.encode()) for d in documents):>12}", flush=True)


if __name__ == "__main__":
    main()
