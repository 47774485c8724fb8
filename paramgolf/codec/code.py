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
# bytes that a string literal in latin-1 cannot hold as they are; base85 would cost a quarter
ESCAPES = str.maketrans({"\0": r"\x00", "\n": r"\n", "\r": r"\r", "\\": r"\\", '"': r"\""})
LOADER = '''# coding: latin-1
"""The packed model's code: `python train_gpt.py eval` scores the model.bin beside it,
`python train_gpt.py train` trains it anew; --help tells more. The modules are compressed by
brotli; `python train_gpt.py source FOLDER` writes them out."""
import importlib.abc, importlib.util, json, pathlib, sys, traceback
import brotli

PACKED = @PACKED@
PARAMS, *CONTENT = brotli.decompress(PACKED.encode("latin-1")).decode().split("\\0")
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
'''


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


def pack_code(params: dict[str, Any], entry: Path = ENTRY, root: Path = ROOT) -> PackedCode:
    """Return a script that runs `main(params)` of module `entry`; `params` must be JSON-able.

    Compressed module sizes are shares by stripped length; the loader's own bytes are counted as
    `loader`.
    """
    modules = {}
    for path in embedded_files(entry, root):
        modules[module_name(path)] = strip((root / path).read_text(encoding="utf-8"))
    parents = {".".join(name.split(".")[:i]) for name in modules for i in range(1, 9)}
    frozen = json.dumps(params, separators=(",", ":"), allow_nan=False)
    everything = {**dict.fromkeys(sorted(parents - {*modules}), ""), **modules}
    # not JSON: escaped line ends would cost 2 %; source code holds no NUL
    text = "\0".join([frozen, *itertools.chain(*everything.items())])
    packed = literal(brotli.compress(text.encode(), quality=11, lgwin=24))
    loader = LOADER.replace("@ENTRY@", module_name(entry))
    script = loader.replace("@PACKED@", packed).encode("latin-1")
    sizes = {name: len(source.encode()) for name, source in modules.items()}
    shares = apportion(len(packed), {"params": len(frozen), **sizes})
    shares["loader"] = len(script) - len(packed)
    part = Part("code", "code", len(script), len(text.encode()), "brotli", shares)
    return PackedCode(script, part)


def literal(data: bytes) -> str:
    """Return a Python string literal whose value, encoded in latin-1, is `data`."""
    return '"' + data.decode("latin-1").translate(ESCAPES) + '"'


def module_name(path: Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(path.with_suffix("").parts)


def strip(source: str) -> str:
    """Return `source` without docstrings, comments and annotations nobody reads; names stay.

    Functions with a decorator keep their annotations: kernels and custom operators read them. Each
    level of indentation is one space.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
    text = ast.unparse(tree)
    narrow = re.sub(r"^( {4})+", lambda spaces: " " * (len(spaces[0]) // 4), text, flags=re.M)
    assert ast.dump(ast.parse(narrow)) == ast.dump(ast.parse(text))
    return narrow
