"""Pack the code that an artifact needs into one self-extracting file, train_gpt.py.

The file holds the modules that its entry imports, directly or not, without docstrings and comments,
compressed behind a small loader. Modules keep their names, and tracebacks show their lines.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

from paramgolf.codec.ledger import Part, apportion
from paramgolf.imports import closure

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
ENTRY = Path("paramgolf/codec/entry.py")
BLIND_DECORATORS = ("property", "contextlib.contextmanager", "torch.no_grad()")
RANS = Path("paramgolf/codec/rans.py")  # left out where no stream needs it
SCRIPT = '''# coding: latin-1
"""The packed model's code: `python train_gpt.py eval` scores the model.bin beside it,
`python train_gpt.py train` trains it anew; --help tells more. The modules are compressed by
brotli; `python train_gpt.py source FOLDER` writes them out."""
import brotli

PACKED = @PACKED@
LOADER, PARAMS, *CONTENT = brotli.decompress(PACKED.encode("latin-1")).decode().split("\\0")
exec(LOADER)
'''
LOADER = """
import importlib.abc, importlib.util, json, pathlib, sys, traceback

SOURCES = dict(zip(CONTENT[0::2], CONTENT[1::2]))


class Packed(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in SOURCES else None

    def is_package(self, name):
        return any(other.startswith(name + ".") for other in SOURCES)

    def get_filename(self, name):
        return f"{__file__}:{name}"

    def get_source(self, name):
        return SOURCES[name]


sys.meta_path.insert(0, Packed())
if __name__ == "__main__":
    sys.excepthook = traceback.print_exception  # unlike the built-in hook, it asks get_source
    if sys.argv[1:2] == ["source"]:
        for name, source in filter(lambda item: item[1], SOURCES.items()):
            path = pathlib.Path(*sys.argv[2:3], *name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
    else:
        importlib.import_module("@ENTRY@").main(json.loads(PARAMS))
"""


@dataclass(frozen=True, slots=True)
class PackedCode:
    """The bytes of train_gpt.py, and the part of the ledger that tells them apart by module."""

    content: bytes
    part: Part


def embedded_files(entry: Path = ENTRY, root: Path = ROOT) -> list[Path]:
    """Return the files that train_gpt.py is made of, relative to `root`, sorted.

    The package stage depends on them as it does on the modules that it imports.
    """
    return sorted({entry, *closure(entry, root)})


def pack_code(
    params: dict[str, Any], entry: Path = ENTRY, root: Path = ROOT, *, rans: bool = False
) -> PackedCode:
    """Return a script that runs `main(params)` of module `entry`; `params` must be JSON-able.

    The decoder of rans is left out unless asked for.
    Compressed module sizes are shares by stripped length; what is not compressed counts as
    `loader`.
    """
    modules = {}
    for path in embedded_files(entry, root):
        if path == RANS and not rans:
            continue
        modules[module_name(path)] = strip((root / path).read_text(encoding="utf-8"))
    parents = {".".join(name.split(".")[:i]) for name in modules for i in range(1, 9)}
    frozen = json.dumps(params, sort_keys=True, separators=(",", ":"), allow_nan=False)
    everything = {**dict.fromkeys(sorted(parents - {*modules}), ""), **modules}
    loader = strip(LOADER.replace("@ENTRY@", module_name(entry)))
    # not JSON: escaped line ends would cost 2 %; source code holds no NUL
    text = "\0".join([loader, frozen, *itertools.chain(*everything.items())])
    packed = literal(brotli.compress(text.encode(), quality=11, lgwin=24))
    script = SCRIPT.replace("@PACKED@", packed).encode("latin-1")
    sizes = {name: len(source.encode()) for name, source in modules.items()}
    shares = apportion(len(packed), {"params": len(frozen), "loader": len(loader), **sizes})
    shares["loader"] += len(script) - len(packed)
    part = Part("code", "code", len(script), len(text.encode()), "brotli", shares)
    return PackedCode(script, part)


def literal(data: bytes) -> str:
    """Return a Python string literal whose value, encoded in latin-1, is `data`.

    Three of 256 bytes need an escape, which costs 1.5 %; base85 would cost a quarter.
    """
    text = data.decode("latin-1").replace("\\", r"\\").replace("\r", r"\r")
    text = re.sub("\0(?=[0-7])", r"\\000", text)  # an octal escape would take the digit
    text = re.sub(r'"(?="|\Z)', r"\"", text)  # three in a row, or one at the end, would close it
    return '"""' + text.replace("\0", r"\0") + '"""'


def module_name(path: Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(path.with_suffix("").parts)


def strip(source: str) -> str:
    """Return `source` without docstrings, comments, and annotations and imports nobody reads.

    Names stay. Annotations of fields stay, and those of functions with a decorator from elsewhere:
    kernels and custom operators read them. Each level of indentation is one space.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            _drop_annotations(node)
    _drop_unused_imports(tree)
    text = ast.unparse(tree)
    narrow = re.sub(r"^( {4})+", lambda spaces: " " * (len(spaces[0]) // 4), text, flags=re.M)
    assert ast.dump(ast.parse(narrow)) == ast.dump(ast.parse(text))
    return narrow


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


def _drop_unused_imports(tree: ast.Module) -> None:
    """Drop names that `from ... import` brings into a module that no longer speaks of them."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    kept: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            statement.names = [n for n in statement.names if (n.asname or n.name) in used]
            if not statement.names:
                continue
        kept.append(statement)
    tree.body = kept
