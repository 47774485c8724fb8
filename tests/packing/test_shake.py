"""What a program does not use is left out of it, and it still does the same."""

from __future__ import annotations

from paramgolf.packing.shake import shaken

SOURCES = {
    "app.main": """
from __future__ import annotations
import json, os.path
from app import tools, unused
from app.shapes import AREA, Square, Circle
from app.only_types import Name
def main(): return Square(2).area() + tools.one() + late()
def late():
    from app.late import value
    return value
def never(): return json, os.path
""",
    "app.shapes": """
from __future__ import annotations
from dataclasses import dataclass
SCALE: int = 3
AREA = {}
AREA["square"] = scaled = 0
@dataclass
class Square:
    side: Length
    def area(self): return SCALE * self.side ** 2
class Circle: pass
Length, Width = int, int
""",
    "app.tools": "def one(): return 1\ndef two(): return 2",
    "app.unused": "def three(): return 3",
    "app.only_types": "from __future__ import annotations\nName = tuple[str, str]",
    "app.late": "from app.tools import two\nvalue = two()\nother = 5",
}


def test_what_no_root_reaches_goes():
    found = shaken(SOURCES, [("app.main", "main"), ("gone", "start")])
    assert found.keys() == {"app.main", "app.shapes", "app.tools", "app.late"}
    for word in ("never", "json", "os", "unused", "AREA,", "Circle", "Name"):
        assert word not in found["app.main"]
    assert "Circle" not in found["app.shapes"]
    assert "other" not in found["app.late"]


def test_what_the_program_uses_is_kept():
    """Modules as such whole, what annotations name, what a function imports, and effects."""
    found = shaken(SOURCES, [("app.main", "main")])
    assert {"one", "two"} <= {word.split("(")[0] for word in found["app.tools"].split()}
    for word in (
        "SCALE:int=3",
        "side:Length",
        "Length,Width",
        "AREA['square']=",
        "@dataclass\n",
    ):
        assert word in found["app.shapes"]
    assert "value=two()" in found["app.late"]
