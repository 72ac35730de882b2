"""What constructors take, read from their source text: wrong values are refused without importing torch."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

Arguments = tuple[dict[str, Any], list[str], bool]


class Unreadable(Exception):  # noqa: N818 - no error: what is imported later decides
    """The source text does not tell."""


@cache
def arguments_of(name: str) -> Arguments | None:
    """What a class's constructor or a function takes by name: as :func:`imago.config.arguments_of`, without importing.

    Args:
        name: full name.

    Returns:
        the annotation of each, those that must be given, and whether any others may be; ``None`` where the source text
        does not tell.
    """
    source, _, attribute = name.rpartition(".")
    if not _is_read(source):
        return None
    try:
        owner, definition = module(source).find(attribute)
        if isinstance(definition, ast.FunctionDef):
            return _arguments(owner, definition, skip=0)
        constructor = _constructor(owner, definition)
        return ({}, [], False) if constructor is None else _arguments(*constructor, skip=1)
    except Unreadable:
        return None


@cache
def attribute_of(name: str, attribute: str) -> Any:
    """The value of a class attribute that is written as a literal, in the class or the first of its bases that has it.

    Args:
        name: full name of the class.
        attribute: its name.

    Returns:
        the value; ``None`` where the source text does not tell.
    """
    source, _, kind = name.rpartition(".")
    if not _is_read(source):
        return None
    try:
        return _attribute(*module(source).find(kind), attribute)
    except (Unreadable, ValueError):
        return None


class Module(dict[str, Any]):
    """The values of a module's names as far as annotations need them, each evaluated when it is asked for.

    In place of a class, which may need torch, stands one without instances.

    Args:
        name: full name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        root, *below = name.split(".")
        found = importlib.util.find_spec(root)
        if found is None or not found.submodule_search_locations:
            raise Unreadable(name)
        path = Path(found.submodule_search_locations[0], *below)
        self.name, self.is_package = name, path.is_dir()
        try:
            text = (path / "__init__.py" if self.is_package else path.with_suffix(".py")).read_text(encoding="utf-8")
        except OSError:
            raise Unreadable(name) from None
        self.statements = dict(_bindings(ast.parse(text).body))

    def __missing__(self, name: str) -> Any:
        if name not in self.statements:
            raise KeyError(name)  # a builtin
        owner, statement = self.find(name)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            self[name] = owner.evaluate(statement.value)
        elif isinstance(statement, ast.ImportFrom) and _is_light(owner.source_of(statement)):
            self[name] = getattr(importlib.import_module(owner.source_of(statement)), _original(statement, name))
        elif isinstance(statement, ast.FunctionDef):  # that validates a value
            exec(compile(ast.Module([statement], []), owner.name, "exec"), owner)
            self[name] = owner[statement.name]
        else:
            self[name] = _NoInstances(name, (), {})
        return self[name]

    def evaluate(self, expression: ast.expr) -> Any:
        """The value of an annotation."""
        value = eval(compile(ast.Expression(expression), self.name, "eval"), self)
        return self.evaluate(ast.parse(value, mode="eval").body) if isinstance(value, str) else value

    def source_of(self, statement: ast.ImportFrom) -> str:
        """The full name of the module that a statement imports from."""
        parts = self.name.split(".")
        above = parts[: len(parts) - statement.level + self.is_package] if statement.level else []
        return ".".join([*above, *([statement.module] if statement.module else [])])

    def find(self, name: str) -> tuple["Module", ast.stmt]:
        """The statement that defines a name, and the module that it stands in; imports are followed."""
        statement = self.statements.get(name)
        if statement is None:
            raise Unreadable(name)
        if isinstance(statement, ast.ImportFrom) and _is_read(self.source_of(statement)):
            return module(self.source_of(statement)).find(_original(statement, name))
        return self, statement


module = cache(Module)


class _NoInstances(type):
    """Of a class that is not imported; also of what it contains, where it is a module, and of what it is generic in."""

    def __getattr__(cls, name: str) -> "_NoInstances":
        if name.startswith("_"):
            raise AttributeError(name)
        return _NoInstances(name, (), {})

    def __getitem__(cls, item: object) -> "_NoInstances":
        return cls


def _is_read(name: str) -> bool:
    """Whether the source text of a module is read: ours, and that of torch's optimisers."""
    return name.split(".")[0] == "imago" or f"{name}.".startswith("torch.optim.")


def _is_light(name: str) -> bool:
    """Whether a module can be imported at no price."""
    root = name.split(".")[0]
    return root in sys.stdlib_module_names or root in ("annotated_types", "pydantic")


def _bindings(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in statements:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((alias.asname or alias.name, statement) for alias in aliases)
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield name, statement


def _original(statement: ast.ImportFrom, name: str) -> str:
    return next(alias.name for alias in statement.names if name == (alias.asname or alias.name))


def _constructor(owner: Module, definition: ast.stmt) -> tuple[Module, ast.FunctionDef] | None:
    """The ``__init__`` of a class, or that of the first of its bases that has one."""
    if not isinstance(definition, ast.ClassDef):
        raise Unreadable
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return owner, statement
    if any(ast.unparse(decorator).startswith("dataclass") for decorator in definition.decorator_list):
        return owner, _of_fields([s for s in definition.body if isinstance(s, ast.AnnAssign)])
    for base in definition.bases:
        name = ast.unparse(base).partition("[")[0]
        if name not in ("ABC", "Generic", "Protocol"):
            constructor = _constructor(*owner.find(name))
            if constructor is not None:
                return constructor
    return None


def _attribute(owner: Module, definition: ast.stmt, attribute: str) -> Any:
    if not isinstance(definition, ast.ClassDef):
        return None
    for statement in definition.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=found)], value=value)
                | ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value)
            ) if found == attribute:
                return ast.literal_eval(value)
    for base in definition.bases:
        with suppress(Unreadable):
            value = _attribute(*owner.find(ast.unparse(base).partition("[")[0]), attribute)
            if value:
                return value
    return None


def _of_fields(fields: list[ast.AnnAssign]) -> ast.FunctionDef:
    """The ``__init__`` that a dataclass is given; what it inherits is not looked for."""
    arguments = [ast.arg("self"), *(ast.arg(ast.unparse(field.target), field.annotation) for field in fields)]
    defaults = [field.value for field in fields if field.value is not None]
    return ast.FunctionDef("__init__", ast.arguments([], arguments, None, [], [], None, defaults), [], [])


def _arguments(owner: Module, function: ast.FunctionDef, skip: int) -> Arguments:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    without_default = [argument.arg for argument in positional[skip : len(positional) - len(given.defaults)]]
    without_default += [a.arg for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if not default]
    hints = {argument.arg: _hint(owner, argument.annotation) for argument in [*positional[skip:], *given.kwonlyargs]}
    match given.kwarg and given.kwarg.annotation:
        case ast.Subscript(value=ast.Name(id="Unpack"), slice=ast.Name(id=name)):
            return hints | _fields(*owner.find(name)), without_default, False
    return hints, without_default, given.kwarg is not None


def _fields(owner: Module, definition: ast.stmt) -> dict[str, Any]:
    """The annotations of a TypedDict."""
    if not isinstance(definition, ast.ClassDef):
        raise Unreadable
    fields: dict[str, Any] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and base.id != "TypedDict":
            fields |= _fields(*owner.find(base.id))
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields[statement.target.id] = _hint(owner, statement.annotation)
    return fields


def _hint(owner: Module, annotation: ast.expr | None) -> Any:
    try:
        return Any if annotation is None else owner.evaluate(annotation)
    except (Unreadable, NameError, TypeError, AttributeError):
        return Any
