"""Hold the locked versions against the public list of known vulnerabilities: ``make audit``.

Every name and version of the lock files is sent to osv.dev, and nothing else. A known vulnerability fails; without a
network nothing can be known, which is said and passes, so that work goes on offline.
"""

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-uv.lock", "requirements-bench.lock")
URL = "https://api.osv.dev/v1/querybatch"
SECONDS = 15
# Vulnerabilities that do not concern this project, with the reason.
IGNORED: dict[str, str] = {}


def locked() -> dict[tuple[str, str], str]:
    """Every (name, version) of the lock files, with the file that has it."""
    found: dict[tuple[str, str], str] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([\w.+!]+)", (ROOT / lock).read_text(), re.MULTILINE):
            found.setdefault((name, version), lock)
    return found


def known(packages: list[tuple[str, str]], url: str) -> list[list[str]]:
    """The identifiers of the vulnerabilities of each package.

    Raises:
        OSError: nobody answers.
        ValueError: the answer is none.
    """
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        results: Any = json.loads(response.read(2**26))["results"]
    if len(results) != len(packages):
        raise ValueError(f"{len(results)} answers to {len(packages)} questions")
    return [[found["id"] for found in result.get("vulns", [])] for result in results]


def main(url: str = URL) -> int:
    """Print what is known; 1 if something is."""
    packages = locked()
    try:
        answers = known(list(packages), url)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"audit: {url} could not be asked ({reason}); the {len(packages)} locked versions were not checked")
        return 0
    bad = 0
    for ((name, version), lock), identifiers in zip(packages.items(), answers, strict=True):
        for identifier in identifiers:
            if identifier in IGNORED:
                print(f"audit: {name} {version}: {identifier} left out: {IGNORED[identifier]}")
                continue
            bad += 1
            print(f"{lock}: {name} {version}: https://osv.dev/vulnerability/{identifier}; make lock ARGS=--upgrade")
    print(
        f"audit: {bad or 'no'} known {'vulnerability' if bad == 1 else 'vulnerabilities'} in {len(packages)} versions"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
