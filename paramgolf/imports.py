"""Which of the package's modules a script needs: the transitive closure of its import statements.

The same answer serves as what a stage's hash covers and as the contents of train_gpt.py.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

PACKAGE = "paramgolf"


def imported_names(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports anywhere.

    `from a import b` names the module a, and a.b should that be a module.
    """
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def imported_modules(tree: ast.Module) -> set[str]:
    """Return those of the `imported_names` that are of this package."""
    return {name for name in imported_names(tree) if name.split(".")[0] == PACKAGE}


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements, however deep: most nodes are expressions, which import nothing."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr):
            yield node
            yield from _statements(node)


def module_file(name: str, root: Path) -> Path | None:
    """Return the file of a dotted module name relative to `root`, or None if it is no module."""
    base = Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if (root / path).is_file():
            return path
    return None


def closure(script: Path, root: Path, *, without: Collection[str] = ()) -> list[Path]:
    """Return the files of the package that `script` imports, directly or not, sorted.

    Paths are relative to `root`, the folder that holds the package. The __init__ files, which
    hold a docstring alone, are left out, and so are the modules named in `without` and what only
    they import.
    """
    found: set[Path] = set()
    queue = [script]
    while queue:
        path = queue.pop()
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        for name in imported_modules(tree) - {*without}:
            file = module_file(name, root)
            if file is not None and file.name != "__init__.py" and file not in found:
                found.add(file)
                queue.append(file)
    return sorted(found)
