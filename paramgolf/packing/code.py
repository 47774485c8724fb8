"""Pack the code that an artifact needs into one self-extracting file, train_gpt.py.

The file holds the modules that its entry imports, directly or not, without docstrings, comments and
what the recipe's parameters never reach, compressed behind a small loader. Modules and functions
keep their names, and tracebacks show their lines.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import brotli

from paramgolf.codec.byte_ledger import Part, apportion
from paramgolf.imports import closure
from paramgolf.packing.shake import Frozen, drop_unread, shake, without, words_in
from paramgolf.packing.strip import shorten_locals, strip, unparse
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
ENTRY = Path("paramgolf/packing/entry.py")
RANS = Path("paramgolf/codec/rans.py")  # left out where no stream needs it
SCRIPT = '''# coding: latin-1
"""`python train_gpt.py eval` scores model.bin; --help tells more; `source DIR` unpacks the code."""
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


def frozen_params(
    model: dict[str, Any], training: TrainConfig, sliding: SlidingConfig, adapt: TttConfig
) -> dict[str, Any]:
    """Return what is frozen into the code: network, training, and the ways of the evaluations.

    Their other parameters are options of the program: another stride is not another artifact.
    """
    return {
        "model": model,
        "train": asdict(training),
        "eval": {"mode": sliding.mode, "mixture": sliding.mixture.kind},
        "eval_ttt": {"mode": adapt.mode, "mixture": adapt.mixture.kind},
    }


def pack_code(
    params: dict[str, Any], entry: Path = ENTRY, root: Path = ROOT, *, rans: bool = False
) -> PackedCode:
    """Return a script that runs `main(params)` of module `entry`; `params` must be JSON-able.

    The decoder of rans is left out unless asked for.
    Compressed module sizes are shares by stripped length; what is not compressed counts as
    `loader`.
    """
    modules = program(params, entry, root, rans=rans)
    parents = {".".join(name.split(".")[:i]) for name in modules for i in range(1, 9)}
    frozen = json.dumps(
        _read(params, modules), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    everything = {**dict.fromkeys(sorted(parents - {*modules}), ""), **modules}
    loader = unparse(ast.parse(LOADER.replace("@ENTRY@", module_name(entry))))
    # not JSON: escaped line ends would cost 2 %; source code holds no NUL
    in_order = sorted(everything.items(), reverse=True)  # it compresses to 0.4 % less this way
    text = "\0".join([loader, frozen, *itertools.chain(*in_order)])
    packed = literal(brotli.compress(text.encode(), quality=11, lgwin=24))
    script = SCRIPT.replace("@PACKED@", packed).encode("latin-1")
    sizes = {name: len(source.encode()) for name, source in modules.items()}
    shares = apportion(len(packed), {"params": len(frozen), "loader": len(loader), **sizes})
    shares["loader"] += len(script) - len(packed)
    part = Part("code", "code", len(script), len(text.encode()), "brotli", shares)
    return PackedCode(script, part)


def program(
    params: dict[str, Any], entry: Path = ENTRY, root: Path = ROOT, *, rans: bool = False
) -> dict[str, str]:
    """Return the modules of the program that `params` are frozen into, and their sources."""
    files = [path for path in embedded_files(entry, root) if rans or path != RANS]
    trees = {module_name(p): ast.parse((root / p).read_text(encoding="utf-8")) for p in files}
    for tree in trees.values():
        strip(tree)
    if params and not params["eval_ttt"]["mode"].startswith("lora"):
        without(trees, {"adapter", "documents"}, of="TttConfig", defaults="ADAPT")
    shaken = shake(trees, module_name(entry), _frozen(params))
    drop_unread(shaken, "TrainConfig")  # not ModelConfig: a model.bin holds all of its fields
    for tree in shaken.values():
        shorten_locals(tree)
    return {name: unparse(tree) for name, tree in shaken.items()}


def _read(params: dict[str, Any], modules: dict[str, str]) -> dict[str, Any]:
    """Return the parameters without those of training that no module speaks of."""
    spoken = {word for source in modules.values() for word in words_in(source)}
    sections = {**params}
    if "train" in params:
        sections["train"] = {k: value for k, value in params["train"].items() if k in spoken}
    return sections


def _frozen(params: dict[str, Any]) -> Frozen:
    """Return what the fields of the parameters' dataclasses can be in this program."""
    if not params:
        return {}
    modes, kinds = (
        {name: params[name][key] for name in ("eval", "eval_ttt")} for key in ("mode", "mixture")
    )
    whole = {"ModelConfig": params["model"], "TrainConfig": params["train"]}
    frozen: dict[str, dict[str, tuple[Any, ...]]] = {
        kind: {name: (value,) for name, value in of.items()} for kind, of in whole.items()
    }
    frozen["TrainConfig"]["seed"] = ()  # any: runs of other seeds have the same modules
    return {
        **frozen,
        "SlidingConfig": {"mode": (modes["eval"],)},
        "TttConfig": {"mode": (modes["eval_ttt"],)},
        "MixtureConfig": {"kind": tuple(sorted({*kinds.values()}))},
    }


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
