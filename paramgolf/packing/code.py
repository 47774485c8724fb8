"""Pack the code that an artifact needs into one self-extracting file, train_gpt.py.

The file holds the modules that its entry imports, directly or not, without docstrings, comments,
long local names and what nothing uses, compressed behind a small loader. Modules, functions and
attributes keep their names.

The one rule for the rest of the package: a module that only some recipes need is imported inside
the function that needs it, and `needed_modules` says which recipes those are. The others leave it
out, and with it what only it imports.

`python -m paramgolf.packing.code` packs for another process, from JSON to JSON.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import brotli
from python_minifier import minify

from paramgolf.apart import serve_parent
from paramgolf.codec.byte_ledger import Part, apportion
from paramgolf.imports import closure
from paramgolf.packing.shake import shaken
from paramgolf.params import load_params
from paramgolf.runtime_config import ProcessConfig, RuntimeConfig
from paramgolf.scoring.config import SlidingConfig, TttConfig
from paramgolf.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package
ENTRY = Path("paramgolf/packing/entry.py")
START = "paramgolf.process", "start_process"  # what the loader calls before the entry's main
TRAINING = "paramgolf.training.config"  # of parameters that are checked when they are frozen in
BASE = Path("recipes/base.yaml")  # the defaults of the options that tell facts of the machine
# what else python-minifier would look for in vain, each time in all of the program
NOT_THERE: dict[str, Any] = dict.fromkeys(
    (
        "remove_pass",
        "remove_object_base",
        "remove_builtin_exception_brackets",
        "remove_dead_branches",
        "combine_imports",
        "constant_folding",
        "convert_posargs_to_args",
        "preserve_shebang",
    ),
    False,
)
ADVISED = "ParamGolfError", "file_size"  # calls whose `fix` need not be there
READ_AS_SOURCE = ("import triton", "custom_op")  # in modules whose annotations are read
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
    match sys.argv[1:]:
        case ["source", folder] if folder[:1] != "-":  # needs no torch
            for name, source in filter(lambda item: item[1], SOURCES.items()):
                path = pathlib.Path(folder, *name.split(".")).with_suffix(".py")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source)
        case _:
            importlib.import_module("paramgolf.process").start_process()
            importlib.import_module("@ENTRY@").main(json.loads(PARAMS))
"""


@dataclass(frozen=True, slots=True)
class PackedCode:
    """The bytes of train_gpt.py, and the part of the ledger that tells them apart by module."""

    content: bytes
    part: Part


def frozen_params(
    model: dict[str, Any], training: TrainConfig, sliding: SlidingConfig, adapt: TttConfig
) -> dict[str, Any]:
    """Return what the program knows: how to train the network, and its options' defaults.

    Those are the recipe's, so that without options it scores as the stages do; facts of the machine
    are those of recipes/base.yaml.
    """
    machine = load_params(RuntimeConfig, "runtime", ROOT / BASE)
    return {
        "model": model,
        "train": asdict(training),
        "eval": asdict(sliding),
        "eval_ttt": asdict(adapt),
        "runtime": {field.name: getattr(machine, field.name) for field in fields(ProcessConfig)},
    }


def needed_modules(params: dict[str, Any], *, rans: bool) -> dict[str, bool]:
    """Return the modules that only some recipes need, and whether `params` are of such a recipe."""
    mode = params["eval_ttt"]["mode"]
    mixtures = {params[name]["mixture"]["kind"] for name in ("eval", "eval_ttt")}
    return {
        "paramgolf.codec.rans": rans,
        "paramgolf.model.fp8": params["train"]["precision"] == "fp8_mlp",
        "paramgolf.training.micro_batch": params["train"]["micro_batch_tokens"] == "auto",
        "paramgolf.training.head_mixing": params["train"]["head_mixing"],
        "paramgolf.optim.fake_quant": params["train"]["qat_below"] > 0,
        "paramgolf.model.token_mask": any(
            params[name]["token_mask"] for name in ("train", "eval", "eval_ttt")
        ),
        "paramgolf.scoring.lora_documents": mode == "lora_documents",
        "paramgolf.scoring.lora_stream": mode == "lora_stream",
        "paramgolf.scoring.mixture": mixtures != {"none"},
    }


def pack_code(
    params: dict[str, Any], entry: Path = ENTRY, root: Path = ROOT, *, rans: bool = False
) -> PackedCode:
    """Return a script that runs `main(params)` of module `entry`; `params` must be JSON-able.

    The decoder of rans is left out unless asked for. What a module counts in the ledger is its
    share of the compressed bytes by its length before; what is not compressed counts as `loader`.
    """
    modules = program(params, entry, root, rans=rans)
    parents = {".".join(name.split(".")[:i]) for name in modules for i in range(1, 9)}
    frozen = json.dumps(params, sort_keys=True, separators=(",", ":"), allow_nan=False)
    everything = {**dict.fromkeys(sorted(parents - {*modules}), ""), **modules}
    loader = minified(LOADER.replace("@ENTRY@", module_name(entry)))
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
    """Return the modules of the program that `params` are frozen into, and their sources.

    They hold what `main` of the entry needs, and no other definitions.
    """
    needed = needed_modules(params, rans=rans) if params else {}
    left_out = {name for name, is_needed in needed.items() if not is_needed}
    files = sorted({entry, *closure(entry, root, without=left_out)})
    texts = {module_name(path): (root / path).read_text("utf-8") for path in files}
    if TRAINING in texts:
        texts[TRAINING] = _without_faults(texts[TRAINING])
    sources = {name: minified(text) for name, text in texts.items()}
    return shaken(sources, [(module_name(entry), "main"), START])


def _without_faults(source: str) -> str:
    """Return a module of dataclasses without what says whether their fields go together."""
    tree = ast.parse(source)
    for record in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        methods = [node for node in record.body if isinstance(node, ast.FunctionDef)]
        checks = [method for method in methods if method.name.endswith("faults")]
        record.body = [node for node in record.body if node not in checks]
    return ast.unparse(tree)


class _Advice(ast.NodeTransformer):
    """Takes fixed advice out of errors: it names the project's commands and keys."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Drop `fix` from calls of `ADVISED`, where it is a text or a module's constant."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ADVISED:
            node.keywords = [k for k in node.keywords if k.arg != "fix" or not _is_fixed(k.value)]
        return node


def _is_fixed(value: ast.expr) -> bool:
    constant = isinstance(value, ast.Name) and value.id.isupper()
    return constant or isinstance(value, ast.Constant | ast.JoinedStr)


@functools.cache
def minified(source: str) -> str:
    """Return a module without docstrings, comments, assertions, advice and long local names.

    Triton compiles kernels from their source, and operators take their schema from annotations, so
    modules that hold such functions keep annotations and local names. The fields of dataclasses
    keep theirs everywhere: parameters are checked against them.
    """
    is_read = any(word in source for word in READ_AS_SOURCE)
    return minify(
        ast.unparse(_Advice().visit(ast.parse(source))),
        remove_literal_statements=True,
        remove_asserts=True,
        remove_annotations=not is_read,
        rename_locals=not is_read,
        hoist_literals=False,  # brotli finds repeated literals by itself
        **NOT_THERE,
    )


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


def main() -> None:
    """Pack the params and `rans` on standard input; write the content and the part."""
    serve_parent()
    params, rans = json.load(sys.stdin)
    packed = pack_code(params, rans=rans)
    json.dump([packed.content.decode("latin-1"), asdict(packed.part)], sys.stdout)


if __name__ == "__main__":
    main()
