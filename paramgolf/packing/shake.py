"""Take out of a program what its frozen parameters can never reach.

A parameter that is frozen into the program has one value. Branches that ask for another go, then
the functions, classes and constants that nothing speaks of any more, then their modules. Names are
compared as texts over the whole program, so what only looks used stays. A frozen field's type is
narrowed to its value: whatever asks the program for another one (the header of a model.bin of
another recipe) is refused with a message, not run by code that is not there.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from paramgolf.imports import imported_modules
from paramgolf.packing.strip import drop_unused_imports

Trees = dict[str, ast.Module]
# what each field of a dataclass can be, by the class's name; a field with one value is frozen
Frozen = Mapping[str, Mapping[str, tuple[Any, ...]]]
ELSEWHERE = "\0"  # stands for what an attribute is in other classes, anything but another text
REPLACE = ("replace", "dataclasses.replace")


def shake(trees: Trees, entry: str, frozen: Frozen) -> Trees:
    """Return the modules that module `entry` reaches, with what is left of them."""
    classes = _classes(trees)
    changed = {name for tree in trees.values() for name in _changed(tree)}
    folder = _Folder(_known_values(classes, frozen, changed), _numbers(frozen))
    for tree in trees.values():
        folder.visit(tree)
    for name, fields in frozen.items():
        _narrow(classes[name], fields)
    while True:
        before = _count(trees)
        trees = _reachable(trees, entry)
        _drop_unspoken(trees, entry)
        for tree in trees.values():
            drop_unused_imports(tree)
        if before == _count(trees):
            return trees


def without(trees: Trees, fields: set[str], *, of: str, defaults: str) -> None:
    """Drop fields of a dataclass, and their entries in the mapping of its defaults."""
    declaring = _classes(trees)[of]
    declaring.body = [one for one in declaring.body if _declared(one) not in fields]
    for statement in [one for tree in trees.values() for one in tree.body]:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == defaults:
            mapping = statement.value
            assert isinstance(mapping, ast.Dict)
            entries = zip(mapping.keys, mapping.values, strict=True)
            kept = [(k, v) for k, v in entries if getattr(k, "value", None) not in fields]
            mapping.keys, mapping.values = [k for k, _ in kept], [v for _, v in kept]


def drop_unread(trees: Trees, name: str) -> None:
    """Drop the fields of a dataclass, if it is there, of which no code speaks."""
    spoken = Counter(word for tree in trees.values() for word in words_in(ast.unparse(tree)))
    if declaring := _classes(trees).get(name):
        declaring.body = [one for one in declaring.body if spoken[_declared(one)] != 1]


def _classes(trees: Trees) -> dict[str, ast.ClassDef]:
    """Return the classes of all modules by name."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def _declared(statement: ast.stmt) -> str:
    """Return the field that a statement declares."""
    return ast.unparse(statement.target) if isinstance(statement, ast.AnnAssign) else ""


def words_in(source: str) -> list[str]:
    """Return all names in a module, in texts as well."""
    return re.findall(r"\w+", source)


def _count(trees: Trees) -> int:
    """Return how many definitions and imported names there are."""
    statements = [statement for tree in trees.values() for statement in tree.body]
    parts = [getattr(s, "names", getattr(s, "body", [])) for s in statements]
    return len(statements) + sum(map(len, parts))


def _known_values(
    classes: Mapping[str, ast.ClassDef], frozen: Frozen, changed: set[str]
) -> dict[str, set[Any]]:
    """Return what an attribute of a name can be, for the names of which that is known.

    A name that classes which are not frozen share is known for its texts alone, of which `none`
    may come on top, and not where such a class lists texts of its own.
    """
    known: dict[str, set[Any]] = {}
    for fields in frozen.values():
        for name, values in fields.items():
            known.setdefault(name, set()).update(map(_scalar, values))
    for name, node in classes.items():
        for field, annotation in _members(node):
            if field in known and field not in frozen.get(name, {}):
                texts = all(isinstance(value, str) for value in known[field])
                if texts and "Literal" not in annotation:
                    known[field] |= {"none", ELSEWHERE}
                else:
                    del known[field]
    return {n: values for n, values in known.items() if n not in changed and _is_plain(values)}


def _numbers(frozen: Frozen) -> set[str]:
    """Return the names of fields that hold a number: no text, though others of the kind may."""
    return {
        name
        for fields in frozen.values()
        for name, values in fields.items()
        if all(isinstance(value, int | float) for value in values)
    }


def _changed(tree: ast.Module) -> Iterator[str]:
    """Yield the attributes that code sets, also in copies by dataclasses.replace."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in REPLACE:
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def _scalar(value: Any) -> Any:
    """Return what can be compared with a constant; of lists and mappings only an empty one can."""
    if isinstance(value, str | int | float) or value is None:
        return value
    return ... if value else ()


def _is_plain(values: set[Any]) -> bool:
    """Whether branches hang on such values: texts, truth, None, nothing at all."""
    return all(isinstance(v, str | bool) or v in (None, 0, 0.0, ()) for v in values)


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the names of a class's fields and methods, and the fields' types."""
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id, ast.unparse(part.annotation)
        elif isinstance(part, ast.FunctionDef):
            yield part.name, "Literal"  # what it returns is anyone's guess


class _Folder(ast.NodeTransformer):
    """Replaces what is known by its value and leaves out what is then never run."""

    def __init__(self, known: Mapping[str, set[Any]], numbers: set[str]) -> None:
        self.known, self.numbers = known, numbers

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        values = self.known.get(node.attr, set())
        if isinstance(node.ctx, ast.Load) and len(values) == 1:
            return ast.Constant(next(iter(values)))
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        values = self._values(node.left)
        self.generic_visit(node)
        others = _literals(node.comparators[0])
        if others is None or len(node.ops) > 1:
            return node
        if others == [()] and isinstance(node.ops[0], ast.In):
            return ast.Constant(False)
        numeric = isinstance(node.left, ast.Attribute) and node.left.attr in self.numbers
        if numeric and isinstance(node.ops[0], ast.Eq) and all(isinstance(o, str) for o in others):
            return ast.Constant(False)
        if not values:
            return node
        found = {value in others for value in values}
        if len(found) > 1 or (ELSEWHERE in values and not all(isinstance(o, str) for o in others)):
            return node
        negated = isinstance(node.ops[0], ast.NotEq | ast.IsNot | ast.NotIn)
        plain = isinstance(node.ops[0], ast.Eq | ast.Is | ast.In)
        return ast.Constant(found.pop() != negated) if plain or negated else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.Constant(not node.operand.value)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        ends = isinstance(node.op, ast.Or)  # the truth that ends the chain
        kept: list[ast.expr] = []
        for i, value in enumerate(node.values):
            truth = bool(value.value) if isinstance(value, ast.Constant) else None
            if truth == ends:
                kept.append(value)
                break
            if truth is None or i == len(node.values) - 1:
                kept.append(value)
        node.values = kept
        return node if len(kept) > 1 else kept[0]

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        truth = _truth(node.test)
        if truth is None:
            return node
        return node.body if truth else node.orelse

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        truth = _truth(node.test)
        if truth is None:
            return node
        return node.body if truth else node.orelse

    def visit_Match(self, node: ast.Match) -> ast.stmt | list[ast.stmt]:
        values = self._values(node.subject)
        self.generic_visit(node)
        if not values:
            return node
        cases = [case for case in node.cases if _matches(case.pattern, values)]
        if len(values) == 1 and cases and cases[0].guard is None:
            return cases[0].body
        node.cases = cases
        return node if cases else []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                _cut(body)
                if not body and name == "body" and not isinstance(node, ast.Module):
                    body.append(ast.Pass())
        return node

    def _values(self, node: ast.expr) -> set[Any]:
        return self.known.get(node.attr, set()) if isinstance(node, ast.Attribute) else set()


def _truth(test: ast.expr) -> bool | None:
    """Return what a folded test always says, whatever it asks before; None where it depends."""
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if not isinstance(test, ast.BoolOp) or any(map(_acts, ast.walk(test))):
        return None
    ends = isinstance(test.op, ast.Or)
    return ends if _truth(test.values[-1]) == ends else None


def _acts(node: ast.AST) -> bool:
    return isinstance(node, ast.Call | ast.NamedExpr | ast.Await | ast.Yield)


def _literals(node: ast.expr) -> list[Any] | None:
    """Return the constants that a comparison is made with; None where there are others."""
    nodes = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    if not all(isinstance(one, ast.Constant) for one in nodes):
        return None
    return [one.value for one in nodes if isinstance(one, ast.Constant)]


def _matches(pattern: ast.pattern, values: set[Any]) -> bool:
    """Whether one of `values` can match; patterns that are not texts can."""
    if isinstance(pattern, ast.MatchOr):
        return any(_matches(one, values) for one in pattern.patterns)
    if isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Constant):
        return pattern.value.value in values
    return True


def _cut(body: list[ast.stmt]) -> None:
    """Drop the statements after one that leaves the body."""
    for i, statement in enumerate(body):
        if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
            del body[i + 1 :]
            return


def _narrow(node: ast.ClassDef, fields: Mapping[str, tuple[Any, ...]]) -> None:
    """Narrow the types of frozen fields; nothing is left to say against what is frozen whole."""
    whole = True
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            values = fields.get(statement.target.id)
            whole &= values is not None
            if values and all(isinstance(v, str | int | float) or v is None for v in values):
                choices = ", ".join(map(repr, values))
                statement.annotation = ast.parse(f"Literal[{choices}]", mode="eval").body
    if whole:
        node.body = [one for one in node.body if getattr(one, "name", "") != "faults"]


def _reachable(trees: Trees, entry: str) -> Trees:
    """Return the modules that `entry` imports, directly or not."""
    found, queue = {entry}, [entry]
    while queue:
        new = (imported_modules(trees[queue.pop()]) & trees.keys()) - found
        found |= new
        queue += new
    return {name: tree for name, tree in trees.items() if name in found}


def _drop_unspoken(trees: Trees, entry: str) -> None:
    """Drop functions, methods, classes and constants whose name no other code holds."""
    spoken = Counter(name for tree in trees.values() for name in _words(tree))
    taken = Counter(name for tree in trees.values() for name in _taken(tree))
    own = {n.name for t in trees.values() for n in t.body if isinstance(n, ast.ClassDef)}
    for module, tree in trees.items():
        keep = {"main"} if module == entry else set()
        here = Counter(_words(tree)) + taken  # who speaks of a constant; several modules have a FIX
        tree.body = [
            one
            for one in tree.body
            if not _unspoken(one, here if isinstance(one, ast.Assign) else spoken, keep)
        ]
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and {*map(ast.unparse, node.bases)} <= own:
                kept = [one for one in node.body if not _unspoken(one, spoken, keep, method=True)]
                node.body = kept or [ast.Pass()]


def _unspoken(
    statement: ast.stmt, spoken: Counter[str], keep: set[str], *, method: bool = False
) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        names = [statement.name]
        if any("register" in ast.unparse(one) for one in statement.decorator_list):
            return False
    elif isinstance(statement, ast.Assign) and not method:
        names = [n.id for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        if not all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets):
            return False
    else:
        return False
    inside = Counter(_words(statement))
    return not any(
        name in keep or name.startswith("__") or spoken[name] > inside[name] for name in names
    )


def _taken(tree: ast.Module) -> Iterator[str]:
    """Yield what a module takes from others: names that it imports, and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _words(node: ast.AST) -> Iterator[str]:
    """Yield every name that code reads, and every text that could be one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
