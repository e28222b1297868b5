"""Dependencies point one way, and what only some machines have is imported where it is used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("datamodules", "lightning_modules", "attacks")
MAY_IMPORT = {"datamodules": set(), "attacks": set(), "lightning_modules": {"datamodules", "attacks"}}
OPTIONAL = {"av", "wandb", "jsonargparse"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if name in MODULES]
            names += known if len(known) == len(submodules) else [node.module, *known]
    return set(names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    may = MAY_IMPORT[package] | ({"datamodules"} if path.name == "__main__.py" else set())
    others = {name.partition(".")[0] for name in imported(path)} & set(PACKAGES) - {package}
    assert others <= may


def test_no_cycle_among_modules():
    edges = {
        name: {target for target in imported(path, top_level_only=True) if target in MODULES and target != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_some_machines_lack_is_imported_where_it_is_used(path):
    """The networks, the attacks and the sweep run without PyAV, W&B and the command line."""
    entry_points = {"cli.py", "__main__.py", "yaml_environment.py", "wandb_log.py"}
    if path.name not in entry_points:
        assert "attacks.wandb_log" not in imported(path, top_level_only=True)
        assert not {name.partition(".")[0] for name in imported(path, top_level_only=True)} & OPTIONAL
