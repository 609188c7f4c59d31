#!/usr/bin/env python3
"""Checks the English of comments and documents: tests/prose.py [--all] [FILE...]

Two habits make technical prose hard to read, and both can be counted:

  conditions  "where" in the sense of "if": "where there is no certificate"
  nouns       a clause in the place of a noun: "what is stored", "who receives"

Without a FILE it reads every tracked *.rs (comments only) and *.md (text only)
file. It prints both figures for each kind of file, and fails if one is above its
limit. It then lists the files with the most findings, or with --all every finding.
"""

import re
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

# Most "where" per "if", and most noun clauses per 1,000 words.
LIMITS = {".rs": (0.3, 1.0), ".md": (0.4, 1.5)}

# Not written by hand.
GENERATED = "grpc/src/generated/"

WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)")
WHERE = re.compile(r"\bwhere\b", re.IGNORECASE)
IF = re.compile(r"\bif\b", re.IGNORECASE)
# The verb of a clause, or its subject, after an optional adverb.
CLAUSE = (
    r"\s+(?:\w+ly\s+)?(?:is|are|was|were|has|have|had|does|do|did|can|could|may|might|must|will|would|should"
    r"|it|they|we|you|he|one|\w{2,}[^\Wsu]s|\w+ed)\b"
)
WHAT = re.compile(r"\b(?:what|whatever|whoever)" + CLAUSE, re.IGNORECASE)
# "who" without a noun before it: at the start, or after a word that needs an object.
WHO = re.compile(
    r"(?:^|[.,:;(]\s*|\b(?:and|as|at|but|by|for|from|if|in|is|knows|of|on|or|says|see|tells?|than|that|to|with)\s+)"
    r"who" + CLAUSE,
    re.IGNORECASE,
)

Line = namedtuple("Line", "path number text")


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "*.rs", "*.md"], capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines() if not name.startswith(GENERATED)]


def prose_lines(path):
    """Yields the lines of a file that are prose, without code."""
    in_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if path.suffix == ".rs":
            comment = re.match(r"\s*//[/!]?(.*)", line)
            if not comment:
                in_code = False
                continue
            line = comment[1]
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not re.match(r"\s*\|[\s|:-]*$", line):
            yield Line(path, number, CODE.sub(" x ", line).strip())


def findings(line):
    """Returns the number of noun clauses of a line."""
    if not re.search("wh(?:at|o)", line.text, re.IGNORECASE):
        return 0
    return len(WHAT.findall(line.text)) + len(WHO.findall(line.text))


def check(suffix, lines):
    """Prints the figures of one kind of file. Returns whether they are within the limits."""
    words = sum(len(WORD.findall(line.text)) for line in lines)
    where = [line for line in lines if WHERE.search(line.text)]
    conditions = sum(len(IF.findall(line.text)) for line in lines)
    nouns = [line for line in lines for _ in range(findings(line))]
    ratio_max, nouns_max = LIMITS[suffix]
    ratio, per_thousand = len(where) / max(conditions, 1), 1000 * len(nouns) / max(words, 1)
    print(f"*{suffix}: {words} words; where/if {ratio:.2f} (limit {ratio_max}); "
          f"noun clauses {per_thousand:.2f} per 1,000 words (limit {nouns_max})")
    failures = (where if ratio >= ratio_max else []) + (nouns if per_thousand >= nouns_max else [])
    report(failures, "--all" in sys.argv, where + nouns)
    return not failures


def report(failures, shows_all, found):
    if shows_all:
        for line in found:
            print(f"  {line.path}:{line.number}: {line.text}")
        return
    for path, count in Counter(line.path for line in failures).most_common(20):
        print(f"  {path}: {count}")


def main():
    named = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    lines = [line for path in named or tracked_files() for line in prose_lines(path)]
    if not lines:
        sys.exit("prose: no prose in these files")
    results = []
    for suffix in LIMITS:
        of_kind = [line for line in lines if line.path.suffix == suffix]
        if of_kind:
            results.append(check(suffix, of_kind))
    if not all(results):
        sys.exit("prose: rewrite the sentences; --all lists them")


if __name__ == "__main__":
    main()
