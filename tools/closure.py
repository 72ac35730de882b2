"""What a reader of a model has to read: `python tools/closure.py gan` lists the files that it imports, and lines.

Without a name, the sizes of every model in conf/model, and of all of src. Code is counted without blank lines, comments
and docstrings.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"


def file_of(module: str) -> Path | None:
    """The file of one of our modules, or ``None``."""
    path = SRC.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports_of(file: Path) -> set[Path]:
    """Our files that a file imports, by name."""
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("imago"):
            inside = {file_of(f"{node.module}.{alias.name}") for alias in node.names}
            found |= inside if inside != {None} else {file_of(node.module)}
    return {path for path in found if path is not None and path != SRC / "imago" / "__init__.py"}


def closure(files: set[Path]) -> set[Path]:
    """The files, and all that they import."""
    todo, found = list(files), set(files)
    while todo:
        new = imports_of(todo.pop()) - found
        found |= new
        todo += new
    return found


def targets_in(node: object) -> set[Path]:
    """The files of all classes that a configuration names."""
    if isinstance(node, list):
        return {file for item in node for file in targets_in(item)}
    if not isinstance(node, dict):
        return set()
    found = {file for value in node.values() for file in targets_in(value)}
    file = file_of(str(node.get("_target_", "")).rpartition(".")[0])
    return found | ({file} if file else set())


def files_of(model: str) -> set[Path]:
    """What a choice of the model group needs."""
    return closure(targets_in(yaml.safe_load((ROOT / "conf" / "model" / f"{model}.yaml").read_text())))


def lines(file: Path) -> tuple[int, int]:
    """All lines of a file, and those of code."""
    text = file.read_text(encoding="utf-8")
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            first = node.body[0]
            code.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return text.count("\n"), len(code)


def total(files: set[Path]) -> str:
    """Files, lines and lines of code."""
    counts = [lines(file) for file in files]
    return f"{len(files):4d} files {sum(n for n, _ in counts):7,d} lines {sum(n for _, n in counts):7,d} of code"


def main() -> None:
    """Print the table."""
    names = sys.argv[1:]
    for name in names:
        files = files_of(name)
        for file in sorted(files):
            whole, code = lines(file)
            print(f"{whole:6,d} {code:6,d}  {file.relative_to(SRC)}")
        print(f"{name}: {total(files)}")
    if not names:
        for path in sorted((ROOT / "conf" / "model").glob("*.yaml")):
            print(f"{path.stem:16s}{total(files_of(path.stem))}")
        print(f"{'src':16s}{total(set(SRC.rglob('*.py')))}")


if __name__ == "__main__":
    main()
