"""tools/sanity_checks.py: the checks that decide between measures, and that the rules can say no."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
sanity = __import__("sanity_checks")

ALL = {*sanity.FIDELITY, *sanity.DIVERSITY}
# Which measures fail, and which pass; of the others the margin is small.
DECISIVE = {
    "real outlier": ({"precision", "density"}, ALL - {"precision", "density"}),
    "sampled outlier": ({"recall"}, ALL - {"recall"}),
    "modes one by one": (set(), {"clipped_density", "recall", "coverage", "clipped_coverage"}),
    "modes together": ({"recall"}, {"clipped_density", "coverage", "clipped_coverage"}),
    "invention": ({"clipped_coverage"}, {"precision", "density", "clipped_density", "recall"}),
    "one scale": (ALL, set()),
    "linked": (set(), ALL),
}


@pytest.mark.parametrize("name", DECISIVE)
def test_decisive_checks(name: str) -> None:
    check = sanity.CHECKS[name]
    verdicts = sanity.verdicts(check, sanity.values(check, draws=1))
    fail, succeed = DECISIVE[name]
    assert {measure for measure in fail if verdicts[measure]} == set()
    assert {measure for measure in succeed if not verdicts[measure]} == set()


def test_rules_say_no() -> None:
    assert sanity.are(1, 0)([0.96, 0.04])
    assert not sanity.are(1, 0)([0.94, 0.04])
    assert not sanity.are(1, 0)([0.96, 0.06])
    assert sanity.same([0.5, 0.54])
    assert not sanity.same([0.5, 0.56])
    assert sanity.falls(0.2)([0.9, 0.95, 0.7])
    assert not sanity.falls(0.2)([0.9, 0.1, 0.75])


def test_every_check_compares_two_clouds_of_one_space() -> None:
    for check in sanity.CHECKS.values():
        for real, samples in check.clouds(20, sanity.torch.Generator().manual_seed(0)):
            assert real.shape[1] == samples.shape[1]
            assert real.isfinite().all()
            assert samples.isfinite().all()


def test_the_documentation_has_every_check() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for check in sanity.CHECKS.values():
        assert f"| {check.says} |" in page
