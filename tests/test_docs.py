"""What the pages of documentation name exists: files, tests, parameters, commands, recipes, ..."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramgolf.cli import COMMANDS, parse
from paramgolf.commands.recipes import markdown
from paramgolf.files import read_json
from paramgolf.model.shapes import count
from paramgolf.params import read_yaml
from paramgolf.recipes import build, check, compose, differences, flatten, names, read_assignment
from paramgolf.verify.rules import RULES

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    RECIPES / "README.md",
    ROOT / "tests/fixtures/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PARAMETERS = flatten(compose("base", RECIPES))
SECTIONS = {key.partition(".")[0] for key in PARAMETERS}
FOLDERS = ("paramgolf", "stages", "tests", "recipes", "benchmarks", "docs")
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def quoted(text: str) -> Iterator[str]:
    """Yield what stands in single backticks."""
    yield from INLINE.findall(FENCED.sub("", text))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line of paramgolf and DVC, without comments."""
    lines = [line for block in FENCED.findall(text) for line in block.splitlines()]
    for line in [*lines, *quoted(text)]:
        for part in re.split(r"&&|;|\|", line):
            if part.strip().startswith(("paramgolf ", "dvc ")):
                yield shlex.split(part, comments=True)


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> str:
    """Each page's text."""
    return request.param.read_text(encoding="utf-8")


def test_files_and_tests_that_are_named_exist(page):
    """In commands, too: `python benchmarks/fuzz.py`."""
    blocks = " ".join(FENCED.findall(page))
    for text in " ".join([*quoted(page), blocks]).split():
        if not re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+(?:::\w+)*", text):
            continue
        path, *words = text.split("::")
        assert (ROOT / path).exists(), text
        source = (ROOT / path).read_text(encoding="utf-8") if words else ""
        assert all(re.search(rf"^\s*(?:def|class) {word}\b", source, re.M) for word in words), text


def test_prose_is_at_most_120_columns_wide(page):
    """Tables, code and pictures cannot be broken."""
    for line in FENCED.sub("", page).splitlines():
        if not line.startswith(("|", "    ", "![")):
            assert len(line) <= 120, line


def test_links_lead_somewhere(page, request):
    folder = request.node.callspec.params["page"].parent
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = folder / path if path else request.node.callspec.params["page"]
        assert found.exists(), target
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, target


def test_parameters_that_are_named_exist(page):
    for text in quoted(page):
        match = re.fullmatch(r"(\w+(?:\.\w+)+)(?:[=:] ?\S+)?", text)
        if match and match[1].partition(".")[0] in SECTIONS and "/" not in text:
            assert is_parameter(match[1]) or is_file(match[1]), text


def is_parameter(key: str) -> bool:
    """Tell whether a dotted key is a parameter, a section of them, or a metric."""
    inside = any(other.startswith(f"{key}.") for other in PARAMETERS)
    return inside or key in PARAMETERS or tuple(key.split(".")) in metrics_explained()


def is_file(text: str) -> bool:
    return text.endswith((".json", ".py", ".zst", ".bin", ".model", ".sbatch"))


def metrics_explained() -> set[tuple[str, ...]]:
    """Return the stage and the name of each metric that docs/formats.md explains."""
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \| .+ \|$", text, re.MULTILINE)
    return {
        (stage, key)
        for stages, keys in rows
        for stage in stages.split(", ")
        for key in keys.split(", ")
    }


def test_commands_can_be_given(page):
    for words in commands(page):
        if words[0] == "dvc":
            changes = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "-S"]
            for change in changes:
                assert read_assignment(change)[0] in PARAMETERS, words
        elif words[1] not in ("--help", "COMMAND", "CMD"):
            assert words[1] in COMMANDS, words
            if len(words) > 2 and not any("$" in word or word == "NAME" for word in words):
                given(words[1:])


def given(words: list[str]) -> None:
    """Parse a command line as `paramgolf` would; a recipe and its changes are checked too."""
    options = parse(words)
    if words[0] in ("use", "estimate"):
        build(options.name, [read_assignment(a) for a in options.assignments], RECIPES)


# single pages


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140


def test_the_map_is_the_contract_of_imports():
    """Each box of the architecture's map is a layer of the import-linter contract, in its order."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    boxes = re.findall(r'L\d+\["([\w .·]+)"\]', text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layers = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    assert [set(re.findall(r"\w+", box)) for box in boxes] == layers[:-1]


def test_the_page_of_parameters_is_made_from_the_base_recipe():
    """`python scripts/parameters.py > docs/parameters.md` brings it up to date."""
    page = runpy.run_path(str(ROOT / "scripts/parameters.py"))["page"]
    text = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert page((RECIPES / "base.yaml").read_text(encoding="utf-8")) == text


def test_one_version_is_named_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert read_yaml(ROOT / "CITATION.cff")["version"] == project["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {project['version']}" in changelog


def test_every_rule_is_explained_twice():
    text = (ROOT / "docs/legality.md").read_text(encoding="utf-8")
    for rule in RULES:
        rows = re.findall(rf"^\| {rule}\b.*$", text, re.MULTILINE)
        assert len(rows) == 2, rule
        assert "tests/" in rows[0], rule


def test_every_metric_is_explained():
    """The committed metrics are the sample's; keys that only other modes write are not in them."""
    explained = metrics_explained()
    for path in sorted((ROOT / "artifacts/metrics").glob("*.json")):
        for key in read_json(path):
            assert (path.stem, key) in explained, f"{path.stem}.{key}"


@pytest.mark.parametrize("name", names(RECIPES))
def test_every_recipe_is_explained_with_its_figures(name):
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8").partition("<!-- diff")[0]
    params = check(compose(name, RECIPES), where=name)
    parameters = f"{count(params.model, params.tokenizer.vocab_size):,}"
    rows = re.findall(rf"^\| {name} \| (.*) \| (.*) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 1, f"the first table of docs/recipes.md needs | {name} | | | {parameters} |"
    (row,) = rows
    assert row[2] == parameters
    described = len(re.findall(rf"^\| {name} \|", text, re.MULTILINE))
    assert described == 2, f"the second table of docs/recipes.md needs a row of {name}"
    record = read_yaml(RECIPES / "records.yaml").get(name)
    if record is not None:
        scores = list(record["seeds"].values()) if "seeds" in record else [record["mean"]]
        assert row[0] == f"{sum(scores) / len(scores):.4f}"


def test_the_table_of_differences_is_the_data():
    """`paramgolf recipes --differences` prints what belongs between the marks."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- differences -->\n(.*)\n<!-- end -->", text, re.DOTALL)
    assert table == markdown(differences(folder=RECIPES))


def test_the_readme_shows_the_run_that_is_committed():
    metrics = {
        name: read_json(ROOT / f"artifacts/metrics/{name}.json") for name in ("package", "train")
    }
    sizes = "{bytes_model:,} of weights + {bytes_code:,} of code = {bytes_total:,} bytes"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = sizes.format(**metrics["package"]), f"val_bpb={metrics['train']['val_bpb']:.4f}"
    for line in lines:
        assert line in readme, "metrics of another run? git checkout artifacts/metrics, or correct"
