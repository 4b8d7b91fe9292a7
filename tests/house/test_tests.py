"""The tests themselves: what two test modules share stands in a module of helpers."""

import ast
from pathlib import Path


def test_no_test_module_imports_another():
    modules = {
        path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in Path(__file__).parents[1].rglob("*.py")
    }
    found = [
        f"{name} imports {other}"
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for other in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if other and other.startswith("test_")
    ]
    assert found == []


def test_no_two_test_modules_have_one_name():
    """pytest would import one of them in the place of the other."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
