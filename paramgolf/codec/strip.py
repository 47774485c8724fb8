"""Take out of a module what no interpreter reads: docstrings, assertions, idle annotations."""

from __future__ import annotations

import ast
import re

BLIND_DECORATORS = ("property", "contextlib.contextmanager", "torch.no_grad()")


def strip(tree: ast.Module) -> None:
    """Drop docstrings, assertions, annotations that nobody reads, and advice about the project.

    Names stay. Annotations of fields stay, and those of functions with a decorator from elsewhere:
    kernels and custom operators read them. The `fix` of an error speaks of a project that is not
    there once the module is packed.
    """
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                kept = [one for one in body if not _is_idle(one)]
                must_stay = name == "body" and not isinstance(node, ast.Module)
                setattr(node, name, kept or ([ast.Pass()] if must_stay and body else []))
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if not (k.arg == "fix" and _is_error(node))]
        if isinstance(node, ast.FunctionDef):
            _drop_annotations(node)


def unparse(tree: ast.Module) -> str:
    """Return the source of a tree, with one space a level of indentation."""
    text = ast.unparse(tree)
    narrow = re.sub(r"^( {4})+", lambda spaces: " " * (len(spaces[0]) // 4), text, flags=re.M)
    assert ast.dump(ast.parse(narrow)) == ast.dump(ast.parse(text))
    return narrow


def drop_unused_imports(tree: ast.Module) -> None:
    """Drop what is imported at the top of a module that does not speak of it."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kept: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            statement.names = [n for n in statement.names if (n.asname or n.name) in used]
        elif isinstance(statement, ast.Import):
            names = statement.names
            statement.names = [n for n in names if (n.asname or n.name).split(".")[0] in used]
        if getattr(statement, "names", True):
            kept.append(statement)
    tree.body = kept


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assert):
        return True
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_error(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id.endswith("Error")


def _drop_annotations(function: ast.FunctionDef) -> None:
    """Drop the annotations of a function and its variables, unless a decorator may read them."""
    if any(ast.unparse(one) not in BLIND_DECORATORS for one in function.decorator_list):
        return
    function.returns = None
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        if isinstance(body, list) and not isinstance(node, ast.ClassDef):
            node.body = [_unannotated(statement) for statement in body]  # type: ignore[attr-defined]


def _unannotated(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        plain = ast.Assign(targets=[statement.target], value=statement.value)
        return ast.copy_location(plain, statement)
    return statement
