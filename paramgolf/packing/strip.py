"""Take out of a module what no interpreter needs: docstrings, assertions, long local names."""

from __future__ import annotations

import ast
import itertools
import keyword
import re
import string
from collections.abc import Iterator

PLACEHOLDER = 0  # the annotation of a field, where nobody reads it
BLIND_DECORATORS = ("property", "contextlib.contextmanager", "torch.no_grad()")


def strip(tree: ast.Module) -> None:
    """Drop docstrings, assertions, annotations that nobody reads, and advice about the project.

    Names stay. Annotations of parameters' dataclasses stay, which take keywords alone, and those of
    functions with a decorator from elsewhere: kernels and custom operators read them. The `fix` of
    an error speaks of a project that is not there once the module is packed.
    """
    tree.body = [_unannotated(statement) for statement in tree.body]
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
        if isinstance(node, ast.ClassDef) and "kw_only" not in _decorators(node):
            for part in node.body:
                if isinstance(part, ast.AnnAssign):  # a field needs one, whatever it says
                    part.annotation = ast.Constant(PLACEHOLDER)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            _drop_unread_texts(node)
    if not any(map(_is_annotated, ast.walk(tree))):
        tree.body = [s for s in tree.body if getattr(s, "module", None) != "__future__"]


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


def shorten_locals(tree: ast.Module) -> None:
    """Give the local variables of functions names of a letter or two.

    Arguments keep theirs, callers may use them; so do functions that hold others, whose variables
    are read from within.
    """
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not _holds_scopes(function):
            _shorten(function)


def _drop_unread_texts(function: ast.FunctionDef) -> None:
    """Drop texts that a function names and never reads: advice that was left out."""
    read = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and not isinstance(node, ast.ClassDef):
                kept = [one for one in body if not _is_unread_text(one, read)]
                setattr(node, name, kept or body)


def _is_unread_text(statement: ast.stmt, read: set[str]) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target, value = statement.targets[0], statement.value
    text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return isinstance(target, ast.Name) and target.id not in read and text


def _holds_scopes(function: ast.FunctionDef) -> bool:
    scopes = ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.Global | ast.Nonlocal
    return any(isinstance(node, scopes) for node in ast.walk(function) if node is not function)


def _shorten(function: ast.FunctionDef) -> None:
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)} - arguments
    free = _letters({node.id for node in names} - own | arguments)
    short: dict[str, str] = {}
    for node in names:
        if node.id in own:
            if node.id not in short:
                short[node.id] = next(free)
            node.id = short[node.id]
    for handler in ast.walk(function):  # what else binds a name: they are no Name nodes
        if isinstance(handler, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            handler.name = short.get(handler.name or "", handler.name)


def _letters(taken: set[str]) -> Iterator[str]:
    for size in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=size):
            name = "".join(letters)
            if name not in taken and not keyword.iskeyword(name):
                yield name


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assert):
        return True
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_error(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id.endswith("Error")


def _drop_annotations(function: ast.FunctionDef) -> None:
    """Drop the annotations of a function and its variables, unless a decorator may read them."""
    if _has_foreign_decorator(function):
        return
    function.returns = None
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        if isinstance(body, list) and not isinstance(node, ast.ClassDef):
            node.body = [_unannotated(statement) for statement in body]  # type: ignore[attr-defined]


def _is_annotated(node: ast.AST) -> bool:
    """Tell whether an annotation was kept, which may need to stay a text until it is read."""
    if isinstance(node, ast.FunctionDef) and node.returns is not None:
        return True
    found = getattr(node, "annotation", None)
    return found is not None and getattr(found, "value", None) != PLACEHOLDER


def _decorators(node: ast.ClassDef) -> str:
    return " ".join(map(ast.unparse, node.decorator_list))


def _has_foreign_decorator(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(one) not in BLIND_DECORATORS for one in function.decorator_list)


def _unannotated(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        plain = ast.Assign(targets=[statement.target], value=statement.value)
        return ast.copy_location(plain, statement)
    return statement
