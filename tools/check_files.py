"""Hygiene of the files given as arguments: whitespace, size, and nothing that only holds on one machine.

Prints one line per problem and exits with code 1 if there is any. Run by pre-commit and by tests/test_project.py.
"""

import re
import sys
from pathlib import Path

LARGEST = 1_500_000  # bytes: pictures and shipped weights fit, data sets and checkpoints do not
MACHINE_PATH = re.compile(r"(?<![\w.}~-])/(?:home|mnt|opt|root|tmp|Users|work)/")
INDEX_HOST = re.compile(r"(?:pypi|pythonhosted|download\.pytorch|piwheels)\.org|--(?:(?:extra-)?index-url|find-links)")


def problems(path: Path) -> list[str]:
    """What is wrong with one file, as ``path:line: message``; empty if nothing is."""
    if path.is_symlink() or not path.is_file():
        return []
    if path.stat().st_size > LARGEST:
        return [f"{path}: {path.stat().st_size:,} bytes; files over {LARGEST:,} do not belong in the repository"]
    content = path.read_bytes()
    if b"\0" in content:
        return []
    found = []
    text = content.decode("utf-8")
    if text and not text.endswith("\n"):
        found.append(f"{path}: no newline at the end")
    if text.endswith("\n\n"):
        found.append(f"{path}: empty lines at the end")
    for number, line in enumerate(text.split("\n"), start=1):
        if line != line.rstrip() and not (path.suffix == ".csv" and line == f"{line.rstrip()}\r"):
            found.append(f"{path}:{number}: whitespace at the end of the line")
        if match := MACHINE_PATH.search(line):
            found.append(f"{path}:{number}: {match.group()} exists on one machine only")
        if match := INDEX_HOST.search(line):
            found.append(f"{path}:{number}: {match.group()}: the index is the user's choice, name none")
        if path.suffix == ".lock" and "://" in line:
            found.append(f"{path}:{number}: a lock file holds names, versions and hashes, no address")
    return found


if __name__ == "__main__":
    lines = [line for name in sys.argv[1:] for line in problems(Path(name))]
    print("\n".join(lines))
    sys.exit(bool(lines))
