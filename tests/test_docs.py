"""The examples in the documentation run, and its statements about the code are correct."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import lossops
from lossops import functional, nn

ROOT = Path(__file__).parent.parent
FUNCTIONS = {name: getattr(functional, name) for name in functional.__all__}
MODULES = [
    "lossops", "lossops.core.backends", "lossops.core.labels", "lossops.info", "lossops.patching",
    *sorted({function.__module__ for function in FUNCTIONS.values()}),
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_python_in_documents_runs(document):
    examples = re.findall(r"```python\n(.*?)```", document.read_text(), re.S)
    assert examples or document.name not in ("README.md", "rows.md", "performance.md")
    scope: dict = {}
    for example in examples:
        if "…" not in example:  # "…" marks a fragment of a file that cannot run
            exec(compile(example, document.name, "exec"), scope)


def test_quoted_code_is_the_code():
    """Every code block of CONTRIBUTING.md that names a file is contained in it verbatim."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```(?:cpp|python)\n(?://|#) (\S+).*?\n(.*?)```", text, re.S)
    assert len(blocks) >= 10
    for path, code in blocks:
        assert " ".join(code.split()) in " ".join((ROOT / path).read_text().split()), path


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_docstring_says_everything(function):
    text = inspect.getdoc(function)
    for heading in ("Args:", "Returns:", "Raises:", "Example:"):
        assert heading in text, heading
    for name in inspect.signature(function).parameters:
        assert re.search(rf"\b{name}\b", text), name
    assert re.search(r"\b(Follows|Source|Is :func)", text)
    assert function.__name__ in text.split("Example:")[1]


def test_everything_is_public():
    modules = {f.module.__name__ for f in FUNCTIONS.values() if hasattr(f, "module")}
    assert modules == {*nn.__all__}
    assert set(lossops.__all__) <= set(dir(lossops))


def test_tables_of_losses_are_todays():
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text()
    assert module.with_tables(page) == page, "run: make format"
    listed = set(re.findall(r"^\| `(\w+)", "".join(t() for t in module.TABLES.values()), re.M))
    composed = {name for name, function in FUNCTIONS.items() if not hasattr(function, "rows")}
    assert listed == set(functional.__all__) - composed
    assert all(f"`{name}`" in page for name in composed)


@each_document
def test_relative_links_lead_somewhere(document):
    for path, fragment in re.findall(r"\]\(([^)#:]*)(#[^)]+)?\)", document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {path}"
        if fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            anchors = {"#" + re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert fragment in anchors, f"{document.name} links to {path}{fragment}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 160


def test_version_is_one():
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{lossops.__version__}"' in pyproject
