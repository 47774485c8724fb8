"""Leave out of a program what nothing in it uses: definitions and imports of its modules.

A module of the library serves many; a program often needs one function of it. What stays is what
the program's roots name, what that names in turn, and statements that are no definitions, such as
calls. Names are taken at their word, whatever hides them inside a function: too much may stay, and
never too little.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from python_minifier import unparse

Name = tuple[str, str]  # a module, and what it defines at its top


def shaken(sources: Mapping[str, str], roots: Iterable[Name]) -> dict[str, str]:
    """Return the modules, by name, without what the roots do not need; a module may go as a whole.

    Whoever imports a module as such, and not names from it, needs all of it.
    """
    places: dict[Name, list[int]] = defaultdict(list)  # where a name is defined
    queue, live = [*roots], set()
    for module, source in sources.items():
        for place, statement in enumerate(_statements(source)):
            for name in _defined(statement):
                places[module, name].append(place)
            if not _defined(statement):
                live.add((module, place))
                queue += _needed(module, statement)
    names = {module: [name for of, name in places if of == module] for module in sources}
    while queue:
        module, name = queue.pop()
        if f"{module}.{name}" in sources:
            module = f"{module}.{name}"
            queue += [(module, one) for one in names[module]]
        for place in places.get((module, name), ()):
            if (module, place) not in live:
                live.add((module, place))
                queue += _needed(module, _statements(sources[module])[place])
    kept = {
        module: _text(source, frozenset(place for of, place in live if of == module))
        for module, source in sources.items()
    }
    return {module: text for module, text in kept.items() if text}


@functools.cache
def _statements(source: str) -> tuple[ast.stmt, ...]:
    """Return a module's statements, those that import several names taken apart."""
    statements: list[ast.stmt] = []
    for statement in ast.parse(source).body:
        match statement:
            case ast.ImportFrom(of, names, level):
                statements += [ast.ImportFrom(of, [name], level) for name in names]
            case ast.Import(names):
                statements += [ast.Import([name]) for name in names]
            case _:
                statements.append(statement)
    return tuple(statements)


def _defined(statement: ast.stmt) -> set[str]:
    """Return the names that a statement defines, if that is all that it does."""
    match statement:
        case ast.FunctionDef(name) | ast.ClassDef(name):
            return {name}
        case ast.Assign(targets):
            found = [node for target in targets for node in ast.walk(target)]
            if any(isinstance(node, ast.Attribute | ast.Subscript) for node in found):
                return set()  # it changes what is there
            return {node.id for node in found if isinstance(node, ast.Name)}
        case ast.AnnAssign(ast.Name(name)):
            return {name}
        case ast.ImportFrom("__future__"):
            return set()
        case ast.ImportFrom(_, [alias]) | ast.Import([alias]):
            return {(alias.asname or alias.name).split(".")[0]}
    return set()


def _needed(module: str, statement: ast.stmt) -> Iterator[Name]:
    """Yield what a statement of a module names: of the module itself, and of those it imports."""
    for node in ast.walk(statement):
        match node:
            case ast.Name(name):
                yield module, name
            case ast.ImportFrom(str(of), names):
                yield from ((of, alias.name) for alias in names)
            case ast.Import(names):
                pairs = (alias.name.rpartition(".") for alias in names)
                yield from ((of, name) for of, _, name in pairs)


@functools.cache
def _text(source: str, places: frozenset[int]) -> str:
    """Return the statements at `places`, minified; nothing, if they are compiler directives alone.

    Neighboring imports are joined again.
    """
    body: list[ast.stmt] = []
    for place, statement in enumerate(_statements(source)):
        if place not in places:
            continue
        match body[-1:], statement:
            case [ast.ImportFrom(of, names, 0)], ast.ImportFrom(other, [name], 0) if of == other:
                body[-1] = ast.ImportFrom(of, [*names, name], 0)
            case [ast.Import(names)], ast.Import([name]):
                body[-1] = ast.Import([*names, name])
            case _:
                body.append(statement)
    if all(isinstance(s, ast.ImportFrom) and s.module == "__future__" for s in body):
        return ""
    return unparse(ast.Module(body, []))
