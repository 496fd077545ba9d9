"""Who may import whom: the table in docs/design.md, held against the code."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
SOURCES = sorted((HERE / "lamson").rglob("*.py"))


def table():
    """The rows of the table: module -> the set of modules it may import."""
    rows = {}
    text = (HERE / "docs/design.md").read_text().split("## Modules and who may import whom")[1].split("\n## ")[0]
    for row in re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", text, re.MULTILINE):
        names = re.findall(r"`([\w.*]+)`", row[0])
        allowed = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", row[1])))
        for special in re.findall(r"\((\w+): (\w+)\)", row[1]):
            rows[special[0]] = allowed | {special[1]}
        if "everything above" in row[1]:
            allowed = set(rows)
        for name in names:
            rows.setdefault(name, allowed)
    return rows


def lamson_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lamson":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lamson."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(HERE)))
def test_a_module_imports_only_what_the_design_allows(path):
    name = ".".join(path.relative_to(HERE / "lamson").with_suffix("").parts)
    if name in ("__init__", "handlers.__init__"):
        assert not list(lamson_imports(path))
        return
    rows = table()
    row = "handlers.*" if name.startswith("handlers.") else name
    assert row in rows, f"docs/design.md has no row for {name}"
    if "anything" in rows[row]:
        return
    wrong = set(lamson_imports(path)) - rows[row] - {name, "__version__", "errors", "status"}
    assert not wrong, f"{name} imports {sorted(wrong)}, and docs/design.md allows {sorted(rows[row])}"


def test_every_row_of_the_table_that_is_built_has_its_module():
    built = {".".join(path.relative_to(HERE / "lamson").with_suffix("").parts) for path in SOURCES}
    assert {"routing", "mail", "queue", "server", "commands"} <= built & set(table())
