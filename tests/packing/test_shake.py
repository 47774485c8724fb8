"""What shake takes out of a program, and that what is left computes the same."""

import ast
import builtins
import dataclasses
import json
import subprocess
import symtable
import sys

import pytest
import torch
from recipe_case import RECIPES, narrow_recipe

from paramgolf.model.network import Network, Pass
from paramgolf.packing.code import frozen_params, pack_code, program
from paramgolf.packing.shake import drop_unread, shake, without
from paramgolf.packing.strip import unparse
from paramgolf.recipes import names

VOCAB = 97
LOSS = """
import json, runpy, sys
found = runpy.run_path(sys.argv[1], run_name="packed")
from paramgolf.model.config import ModelConfig
from paramgolf.model.network import Network, Pass
from paramgolf.schema import parse
import torch
torch.set_num_threads(1)
config = parse(ModelConfig, json.loads(found["PARAMS"])["model"], "model")
text = torch.arange(33).view(1, 33) * 7 % 97
network = Network(config, 97, seed=1)
for p in network.parameters(): p.data.add_(0.01)
nll = network.nll(text[:, :-1], text[:, 1:], Pass(config.orders[-1]))
nll.sum().backward()
print([float(nll.double().sum()), float(network.get_parameter("up").grad.double().sum())])
"""


def shaken(source, frozen, **others):
    trees = {name: ast.parse(text) for name, text in {"paramgolf.m": source, **others}.items()}
    return {n: unparse(t) for n, t in shake(trees, "paramgolf.m", frozen).items()}


CONFIG = """
class Config:
    way: Literal['a', 'b', 'c']
    on: bool
    size: int
    limit: int | None
    rows: tuple[int, ...]
    many: tuple[int, ...]
"""
FROZEN = {
    "Config": {
        "way": ("a",),
        "on": (False,),
        "size": (3,),
        "limit": (None,),
        "rows": ([],),
        "many": ([1],),
    }
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if c.on:\n  return x()\nelse:\n  return 1", "return 1"),
        ("if c.on and x():\n  return 2\nreturn 1", "return 1"),
        ("if not c.on or x():\n  return 2\nreturn 1", "return 2"),
        ("return 1 if c.way == 'b' else 2", "return 2"),
        ("return c.way in ('a', 'b')", "return True"),
        ("return c.way in x", "return 'a' in x"),
        ("return x if c.limit is None else c.limit", "return x"),
        ("return c.limit or x", "return x"),
        ("return c.size", "return c.size"),
        ("if c.size > 2:\n  return c.way", "if c.size > 2:\n  return 'a'"),
        (
            "match c.way:\n  case 'b':\n    return 1\n  case 'c':\n    return 2\nreturn 3",
            "return 3",
        ),
        ("match c.way:\n  case 'b':\n    return 1\n  case 'a' | 'c':\n    return 2", "return 2"),
        ("match c.way:\n  case 'b':\n    return 1\n  case _:\n    return 2", "return 2"),
        ("if x and c.on:\n  return 2\nreturn 1", "return 1"),
        ("if x or not c.on:\n  return 2\nreturn 1", "return 2"),
        ("return 1 if x.y > 2 and c.on else 2", "return 2"),
        ("return x and c.on", "return x and False"),
        ("if x() and c.on:\n  return 2\nreturn 1", "if x() and False:\n  return 2\n return 1"),
        ("return 1 if x in c.rows else 2", "return 2"),
        ("return 1 if c.rows else 2", "return 2"),
        ("return 1 if x in c.many else 2", "return 1 if x in c.many else 2"),
        ("while c.on:\n  x()\nreturn 1", "while False:\n  x()\n return 1"),
    ],
)
def test_what_is_known_is_folded(source, expected):
    lines = "\n".join(" " + line for line in source.splitlines())
    text = shaken(f"{CONFIG}\ndef main(c: Config, x):\n{lines}\n", FROZEN)["paramgolf.m"]
    assert text.partition("def main(c: Config, x):\n ")[2] == expected


def test_another_class_with_the_name_keeps_its_branches():
    """Its truth can be another, and its texts are the parameters' or `none`."""
    other = "class Other:\n    on: bool\n    way: str\n"
    body = "def main(c, o: Other):\n    Config()\n    return o.on, o.way == 'none', o.way == 'b'"
    text = shaken(f"{CONFIG}{other}{body}", FROZEN)["paramgolf.m"]
    assert "return (o.on, o.way == 'none', False)" in text
    assert (
        "o.way is None" in shaken(f"{CONFIG}{other}{body} or o.way is None", FROZEN)["paramgolf.m"]
    )
    listed = other.replace("str", "Literal['b', 'd']")
    assert "o.way == 'b'" in shaken(f"{CONFIG}{listed}{body}", FROZEN)["paramgolf.m"]


@pytest.mark.parametrize("change", ["c.on = x", "replace(c, on=x)", "dataclasses.replace(c, on=x)"])
def test_a_field_that_code_changes_is_not_folded(change):
    source = f"{CONFIG}\ndef main(c: Config, x):\n {change}\n return c.on"
    assert "return c.on" in shaken(source, FROZEN)["paramgolf.m"]


def test_frozen_fields_accept_their_value_alone():
    source = (
        f"{CONFIG}\n    def faults(self):\n     pass\ndef main(c: Config):\n hasattr(c, 'faults')"
    )
    text = shaken(source, FROZEN)["paramgolf.m"]
    assert (
        "way: Literal['a']\n on: Literal[False]\n size: Literal[3]\n limit: Literal[None]" in text
    )
    assert "def faults" not in text
    part = {"Config": {"way": ("a", "c")}}
    text = shaken(source, part)["paramgolf.m"]
    assert "way: Literal['a', 'c']\n on: bool" in text
    assert "def faults" in text


def test_what_nothing_speaks_of_goes_with_its_modules():
    main = """
from paramgolf.other import kept, gone, Base
from paramgolf.lost import lost
import json, re
UNUSED, LIMIT = 1, 2
ALONE = lost()
class Child(Base):
    def used(self): pass
    def unused(self): return gone()
    def __len__(self): return 1
class Foreign(re.Base):
    def called_by_the_library(self): pass
@library.register_fake
def _(x): pass
def main(c):
    Child().used(), Foreign(), getattr(c, "by_name")
    return kept(LIMIT)
"""
    other = "def kept(x): return x\ndef gone(): return gone()\nclass Base: pass\ndef by_name(): 1"
    found = shaken(main, {}, **{"paramgolf.other": other, "paramgolf.lost": "def lost(): pass"})
    assert sorted(found) == ["paramgolf.m", "paramgolf.other"]
    text = found["paramgolf.m"]
    for name in ("def used", "__len__", "called_by_the_library", "def _(x)", "LIMIT"):
        assert name in text
    for name in ("unused", "ALONE", "lost", "json", "gone"):
        assert name not in text
    assert "gone" not in found["paramgolf.other"]
    assert "by_name" in found["paramgolf.other"]


def test_a_constant_is_its_modules_own():
    """Another module may have one of that name, and what others import or ask for stays."""
    source = "from paramgolf import n, o\nA = 1\nB = 2\n\ndef main():\n    return B + n.C + o.a()\n"
    others = {
        "paramgolf.n": "A = 3\nC = 4\nD = 5\n",
        "paramgolf.o": "from paramgolf.n import D\nA = 6\n\ndef a():\n    return A + D\n",
    }
    found = shaken(source, {}, **others)
    assert "A = 1" not in found["paramgolf.m"]
    assert "A = 3" not in found["paramgolf.n"]
    for module, line in (("m", "B = 2"), ("n", "C = 4"), ("n", "D = 5"), ("o", "A = 6")):
        assert line in found[f"paramgolf.{module}"]


def test_modules_imported_within_functions_stay():
    found = shaken(
        "def main(c):\n from paramgolf.a import x\n from paramgolf import b\n x(b.y)",
        {},
        **{"paramgolf.a": "def x(y): pass", "paramgolf.b": "y = 1", "paramgolf.c": ""},
    )
    assert sorted(found) == ["paramgolf.a", "paramgolf.b", "paramgolf.m"]


def test_fields_that_nothing_speaks_of_go():
    fields = "class Config:\n size: int\n way: str\n rate: float"
    trees = {"a": ast.parse(fields), "b": ast.parse("def f(c): return c.size, getattr(c, 'way')")}
    drop_unread(trees, "Config")
    assert unparse(trees["a"]) == fields.removesuffix("\n rate: float")


def test_fields_go_with_their_defaults():
    source = "class Config:\n size: int\n way: str\nDEFAULTS = {**OTHERS, 'size': 3, 'way': 'a'}"
    tree = ast.parse(source)
    without({"m": tree}, {"way", "other"}, of="Config", defaults="DEFAULTS")
    assert unparse(tree) == "class Config:\n size: int\nDEFAULTS = {**OTHERS, 'size': 3}"


@pytest.mark.parametrize(("mode", "held"), [("sgd", False), ("lora_documents", True)])
def test_adapters_are_configured_only_where_they_learn(mode, held):
    frozen = recipe_params("pr1493")[1]
    modules = program({**frozen, "eval_ttt": {**frozen["eval_ttt"], "mode": mode}})
    assert ("class LoraConfig" in modules["paramgolf.scoring.config"]) == held
    assert ("'adapter'" in modules["paramgolf.packing.entry_defaults"]) == held


def recipe_params(name, **changes):
    params = narrow_recipe(name)
    model = dataclasses.replace(params.model, **changes)
    sections = params.train, params.eval_sliding, params.eval_ttt
    return model, frozen_params(dataclasses.asdict(model), *sections)


def undefined(source):
    """Names that a module's code reads and neither defines nor finds among the builtins."""
    root = symtable.symtable(source, "module", "exec")
    defined = {s.get_name() for s in root.get_symbols() if s.is_assigned() or s.is_imported()}
    defined |= {s.get_name() for s in root.get_symbols() if s.is_namespace()}
    missing, queue = set(), [root]
    while queue:
        table = queue.pop()
        queue += table.get_children()
        missing |= {
            s.get_name()
            for s in table.get_symbols()
            if s.is_referenced() and (s.is_global() or table is root)
        } - defined
    return missing - {*dir(builtins), "__file__", "__name__"}


@pytest.mark.parametrize("name", names(RECIPES))
def test_the_program_of_a_recipe_lacks_no_name(name):
    """Every name that is read is defined, and every import finds its name."""
    modules = program(recipe_params(name)[1], rans=True)
    for module, source in modules.items():
        assert not undefined(source), module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                known = symtable.symtable(modules[node.module], "module", "exec")
                found = {symbol.get_name() for symbol in known.get_symbols()}
                assert {alias.name for alias in node.names} <= found, module


@pytest.mark.parametrize(
    ("name", "changes"),
    [("pr1204", {}), ("pr1392", {}), ("pr2135", {}), ("pr2135", {"fused_markers": True})],
)
def test_the_network_of_a_recipe_computes_the_same(tmp_path, name, changes):
    config, frozen = recipe_params(name, **changes)
    (tmp_path / "train_gpt.py").write_bytes(pack_code(frozen).content)
    command = [sys.executable, "-I", "-c", LOSS, "train_gpt.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    text = torch.arange(33).view(1, 33) * 7 % VOCAB
    network = Network(config, VOCAB, seed=1)
    for p in network.parameters():
        p.data.add_(0.01)
    nll = network.nll(text[:, :-1], text[:, 1:], Pass(config.orders[-1]))
    nll.sum().backward()
    gradient = network.get_parameter("up").grad
    # the same operations; another process's threads may add up in another order
    expected = [float(nll.detach().double().sum()), float(gradient.double().sum())]
    assert json.loads(found.stdout) == pytest.approx(expected, rel=1e-6)
