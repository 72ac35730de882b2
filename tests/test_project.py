"""The project as a whole: which room may import which, what the repository may hold, versions that must agree."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement

import imago
from imago.errors import how_to_install

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "imago"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The rooms of imago from the bottom up. A room may import itself and the floors below it, nothing beside or above it.
FLOORS = [
    {"errors", "files"},
    {"processes"},
    {"untrusted", "capacity", "measures", "legacy", "progress", "signatures", "taxonomy"},
    {
        "images",
        "distributions",
        "rng",
        "schedules",
        "optimizers",
        "config",
        "downloads",
        "threads",
        "statistics",
        "tables",
        "sweeps",
    },
    {"pretrained"},
    {"paths"},
    {"kernels"},
    {"nets", "pictures", "diffusion", "plugins", "search"},
    {"models"},
    {"checkpoints", "runs"},
    {"data", "exports"},
    {"evaluation"},
    {"figures", "loggers", "wandb_report", "board", "compression"},
    {"training"},
    {"start"},
    {"cli"},
    {"__main__"},
]


def floor_of(room: str) -> int:
    """Height of a room, counted from the ground."""
    for height, rooms in enumerate(FLOORS):
        if room in rooms:
            return height
    raise AssertionError(f"imago.{room} stands on no floor: add it to FLOORS in {Path(__file__).name}")


def imported_modules(path: Path, package: str) -> dict[str, int]:
    """Every module of imago that a file imports, with the line; relative imports are resolved against ``package``."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"imago.{a.name}" for a in node.names] if module == "imago" else [module]
        found |= {name: node.lineno for name in names if name.split(".")[0] == "imago"}
    return found


def upward_imports(package: Path) -> list[str]:
    """Imports that go up or sideways, as ``file:line: what``."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside == Path("__init__.py"):
            continue
        room = inside.parts[0].removesuffix(".py")
        for name, line in imported_modules(path, ".".join(["imago", *inside.parent.parts])).items():
            other = name.split(".")[1] if "." in name else "__init__"
            if other not in {"__init__", "__version__", room} and floor_of(other) >= floor_of(room):
                wrong.append(f"src/imago/{inside}:{line}: {room} imports {name}, which is not on a floor below")
    return wrong


def test_imports_go_one_way():
    wrong = upward_imports(PACKAGE)
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nets/dcgan.py", "from imago.models.base import GenerativeModel"),
        ("models/gan.py", "import imago.training.callbacks.ema"),
        ("models/gan.py", "from ..data import ImageDataModule"),
        ("models/deep/gan.py", "from ... import evaluation"),
        ("errors.py", "from imago import images"),
        ("images.py", "from imago.rng import PerImageGenerator"),
    ],
)
def test_an_upward_import_is_noticed(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from imago.errors import UserError\n{line}\n" if file != "errors.py" else f"\n{line}\n")
    wrong = upward_imports(tmp_path)
    assert len(wrong) == 1
    assert wrong[0].startswith(f"src/imago/{file}:2: ")


def test_an_unknown_room_is_noticed(tmp_path):
    (tmp_path / "images.py").write_text("import imago.attic\n")
    with pytest.raises(AssertionError, match=r"imago\.attic stands on no floor"):
        upward_imports(tmp_path)


def git_files() -> list[str]:
    """Files that are committed or would be: all but the ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def check_files(*names: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/check_files.py", *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_files_hold_no_machine_paths_no_index_and_nothing_large():
    result = check_files(*git_files())
    assert result.returncode == 0, "\n" + result.stdout


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.py", "x = 1 \n", "whitespace at the end of the line"),
        ("a.py", "x = 1", "no newline at the end"),
        ("a.py", "x = 1\n\n", "empty lines at the end"),
        ("a.yaml", "path: /ho" + "me/ada/data\n", "exists on one machine only"),
        ("a.md", "pip install --index" + "-url somewhere\n", "name none"),
        ("a.lock", "x @ https" + "://example.org/x.whl\n", "no address"),
        ("a.txt", "0123456789\n" * 150_000, "do not belong in the repository"),
    ],
)
def test_a_problem_in_a_file_is_noticed(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    result = check_files(str(tmp_path / name))
    assert result.returncode == 1
    assert problem in result.stdout


def test_git_ignores_nothing_that_a_run_needs():
    known = set(git_files())
    needed = [p for folder in ("conf", "src", "tests") for p in (ROOT / folder).rglob("*") if p.is_file()]
    needed = [
        p for p in needed if p.suffix in {".py", ".yaml", ".pt", ".npz", ".typed"} and "__pycache__" not in p.parts
    ]
    ignored = [str(p.relative_to(ROOT)) for p in needed if str(p.relative_to(ROOT)) not in known]
    assert len(needed) > 10
    assert not ignored


def pins(lock: str) -> dict[str, set[str]]:
    """Versions of each package in a lock file: several, where they depend on the Python version."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+!]+)", (ROOT / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_every_requirement_is_locked_with_hashes():
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    wanted = {
        "requirements.lock": project["dependencies"] + project["optional-dependencies"]["dev"],
        "requirements-uv.lock": groups["installer"],
        "requirements-bench.lock": groups["bench"],
        "requirements-docs.lock": groups["docs"],
    }
    for lock, requirements in wanted.items():
        locked = pins(lock)
        for requirement in map(Requirement, requirements):
            assert locked.get(requirement.name), f"{lock} lacks {requirement.name}: make lock"
            for version in locked[requirement.name]:
                assert requirement.specifier.contains(version), f"{lock}: {requirement.name} {version}: make lock"
        text = (ROOT / lock).read_text()
        entries = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in entry for entry in entries)


def test_torch_and_torchvision_are_one_pair():
    locked = pins("requirements.lock")
    assert [len(locked[package]) for package in ("torch", "torchvision")] == [1, 1]
    # torchvision's compiled operators load only beside the torch that they were built for.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]


def test_one_version_everywhere():
    changelog = re.search(r"^## (\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = PYPROJECT["project"]["version"]
    assert (imago.__version__, changelog.group(1), citation["version"]) == (version, version, version)


def test_continuous_integration_runs_the_same_script_and_supported_pythons():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["steps"][-1]["run"] == ".ci/run"
    supported = Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier
    assert all(supported.contains(version) for version in job["strategy"]["matrix"]["python"])


def test_make_prints_its_targets():
    result = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    for target in ("install", "demo", "test", "check", "bench"):
        assert re.search(rf"make {target} +\w", result.stdout)


@pytest.mark.parametrize(
    ("given", "installs"), [("", True), ("fvbn", True), ("--plan made", False), ("--report", False)]
)
def test_a_speedrun_installs_its_peers_where_something_is_run(given: str, installs: bool) -> None:
    make = ["make", "--dry-run", "--what-if=requirements-bench.lock", "speedrun", f"ARGS={given}"]
    said = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"benchmarks/speedrun.py {given}" in said
    assert ("rm -rf .venv/peers" in said) == installs


def test_nothing_is_installed_from_an_index_under_our_name() -> None:
    """There is no such package: a copy of the repository or a wheel is what one has."""
    files = [name for name in git_files() if name.endswith((".py", ".md", ".yaml", ".ipynb", ".sh"))]
    told = re.compile(r"pip install\s+(-\S+\s+)*'?imago\b(?!-)")
    assert not [name for name in files if told.search((ROOT / name).read_text(encoding="utf-8"))]
    assert how_to_install("sweep").startswith("pip install '.[sweep]' in a copy of imago's repository")


def test_the_gallery_has_a_picture_of_every_figure() -> None:
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    pictures = dict(re.findall(r"!\[(\w+)\]\((images/[^)]+\.png)\)", page))
    assert set(pictures) == {path.stem for path in (ROOT / "conf" / "figure").glob("*.yaml")}
    assert all((ROOT / "docs" / picture).exists() for picture in pictures.values())
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(pictures)
