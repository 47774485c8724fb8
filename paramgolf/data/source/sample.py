"""The embedded sample: documentation that every installation carries, one document a module.

CPython's pydoc topics and the docstrings of the public modules of the standard library, torch and
numpy, read from their source files by `ast`: nothing is imported, so the text depends on the
installed versions alone. Documents come in the order of the SHA-256 of their names, so that the
first ones, which become the validation split, are a fair draw.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from paramgolf.data.documents import Document
from paramgolf.errors import ParamGolfError

PACKAGES = ("torch", "numpy")
# parts of a path that hold tests or other people's packages
SKIPPED = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"}
)
Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def versions() -> dict[str, str]:
    """Return the versions that fix the sample's text."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def sample_documents() -> Iterator[Document]:
    """Yield the sample in its fixed order; exact duplicates are dropped, the first one stays."""
    seen: set[str] = set()
    documents = [*_topics(), *_modules()]
    documents.sort(key=lambda document: hashlib.sha256(document.name.encode()).digest())
    for document in documents:
        if document.text not in seen:
            seen.add(document.text)
            yield document


def _topics() -> Iterator[Document]:
    """Yield pydoc's topics, the language reference that `help()` shows."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        fix = "install the full standard library, or set data.source to files"
        raise ParamGolfError("this Python has no pydoc topics", where=path, fix=fix)
    for statement in _parse(path).body:
        if isinstance(statement, ast.Assign):
            for name, text in ast.literal_eval(statement.value).items():
                yield Document(f"pydoc topic {name}", text.strip())


def _modules() -> Iterator[Document]:
    """Yield a document for each public module that documents something."""
    roots = {"": Path(sysconfig.get_paths()["stdlib"])}
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations
        roots[package] = Path(found.submodule_search_locations[0])
    for package, root in roots.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not SKIPPED.intersection(parts) and all(map(_is_public, parts)):
                name = ".".join(part for part in (package, *parts) if part and part != "__init__")
                text = "\n\n".join(_docstrings(_parse(path)))
                if text:
                    yield Document(name, f"{name}\n\n{text}")


def _is_public(part: str) -> bool:
    """Tell whether a part of a dotted name is public; torch's and numpy's _*_docs.py are text."""
    return not part.startswith("_") or part == "__init__" or part.endswith("docs")


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's sources: invalid escapes and the like
        return ast.parse(path.read_bytes(), filename=str(path))


def _docstrings(node: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the docstrings inside `node` in the order of the source, each under its signature."""
    if isinstance(node, ast.Module) and (text := ast.get_docstring(node)):
        yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Documented) and _is_public(child.name):
            name = f"{prefix}{child.name}"
            if text := ast.get_docstring(child):
                yield f"{_heading(child, name)}\n{text}"
            if isinstance(child, ast.ClassDef):
                yield from _docstrings(child, f"{name}.")
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _added(child.value)


def _heading(node: Documented, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def _added(call: ast.Call) -> Iterator[str]:
    """Yield the text of a call like add_docstr(torch.add, "..."), torch's way with operators."""
    if "doc" in ast.unparse(call.func):
        for node in ast.walk(call):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.strip()
                if "\n" in text:
                    yield text
