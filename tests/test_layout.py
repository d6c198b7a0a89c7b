"""The rules of the house that a reader relies on (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("calibration", "cloud_trainer", "edge_runtime", "evaluation", "export", "watch")
LIGHT = {
    "click",
    "functools",
    "json",
    "math",
    "pathlib",
    "typing",
    "__future__",
    "collections",
}  # at a command module's head
HEAVY = {"torch", "timm", "torchvision"}
TORCH = {  # what a device with a frozen trunk does not import
    "adc_edge/method/adc.py",
    "adc_edge/method/trunk.py",
    "adc_edge/method/split.py",
    "adc_edge/method/token_augmentation.py",
    "adc_edge/optimizer/torch_optimizer.py",
    "adc_edge/weights/adapting.py",
    "adc_edge/weights/fitting.py",
    "adc_edge/weights/naming.py",
    "adc_edge/weights/reading.py",
    "adc_edge/weights/refusals.py",
    "edge_runtime/engines/torch.py",
    "edge_runtime/trunk/trainer.py",
}


def core_files(root: Path) -> list[Path]:
    """The core's own files: `rglob` would follow the links to the parts."""
    links = {p for p in (root / "adc_edge").iterdir() if p.is_symlink()}
    return sorted(p for p in (root / "adc_edge").rglob("*.py") if not links & set(p.parents))


def part_files(root: Path, part: str) -> list[Path]:
    return sorted((root / part).rglob("*.py"))


def source_files(root: Path) -> list[Path]:
    return core_files(root) + [path for part in PARTS for path in part_files(root, part)]


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def imports_part(module: str, parts: tuple[str, ...]) -> bool:
    return top(module) in PARTS or f"{module}.".startswith(tuple(f"adc_edge.{part}." for part in parts))


def foreign_imports(root: Path) -> list[str]:
    """Imports of another part by a part, or of any part by the core."""
    faults = [(p, m) for p in core_files(root) for m in imports(p) if imports_part(m, PARTS)]
    for part in PARTS:
        others = tuple(other for other in PARTS if other != part)
        faults += [(p, m) for p in part_files(root, part) for m in imports(p) if imports_part(m, others)]
    return [f"{path.relative_to(root)} imports {module}" for path, module in faults]


def heavy_heads(root: Path) -> list[str]:
    """Command modules that import more than click and plain constants at their head."""
    allowed = (
        "adc_edge.options.",
        "adc_edge.quantities.",
        "adc_edge.config.",
        "adc_edge.errors.",
        "adc_edge.defaults",
        "adc_edge.watching.options.",
    )
    return [
        f"{path.relative_to(root)} imports {module}"
        for path in source_files(root)
        if path.name.endswith("command.py") or path.name in ("options.py", "defaults.py")
        for module in imports(path, top_level_only=True)
        if top(module) not in LIGHT and not module.startswith(allowed)
    ]


def unpickling(root: Path) -> list[str]:
    """Anything that could run code from a file or a socket."""
    faults = []
    for path in source_files(root):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        called = {ast.unparse(n.func) for n in calls if "weights_only=True" not in map(ast.unparse, n.keywords)}
        wrong = called & {"torch.load", "recv_pyobj", "send_pyobj", "eval", "exec"}
        wrong |= {top(m) for m in imports(path)} & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
        faults += [f"{path.relative_to(root)} uses {name}" for name in sorted(wrong)]
    return faults


def too_long(root: Path) -> list[str]:
    """Files above 300 lines, functions above 60 without their docstring."""
    faults = []
    for path in source_files(root):
        text = path.read_text()
        if text.count("\n") > 300:
            faults.append(f"{path.relative_to(root)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                if lines > 60:
                    faults.append(f"{path.relative_to(root)}: {node.name}: {lines} lines")
    return faults


def crowded(root: Path) -> list[str]:
    """Folders in which a newcomer must read a list: more than 14 modules."""
    folders = Counter(path.parent for path in source_files(root) if path.name != "__init__.py")
    return [f"{folder.relative_to(root)}: {count} modules" for folder, count in folders.items() if count > 14]


def ambiguous(root: Path) -> list[str]:
    """Public classes and constants whose name stands in two modules."""
    homes: dict[str, list[str]] = {}
    for path in source_files(root):
        for name in public_names(ast.parse(path.read_text())):
            homes.setdefault(name, []).append(path.relative_to(root).as_posix())
    return [f"{name} in {' and '.join(files)}" for name, files in homes.items() if len(files) > 1]


def public_names(tree: ast.Module) -> set[str]:
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    targets = [n.targets[0] for n in tree.body if isinstance(n, ast.Assign)]
    targets += [n.target for n in tree.body if isinstance(n, ast.AnnAssign)]
    names = classes | {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return {name for name in names if not name.startswith("_") and name != "logger"}


RULES: dict[Callable[[Path], list[str]], dict[str, str]] = {  # each rule, and violations in a sub-folder by file
    foreign_imports: {
        "adc_edge/room/a.py": "from adc_edge.export import build\n",
        "adc_edge/room/b.py": "from adc_edge import export\n",
        "export/room/deeper/a.py": "import adc_edge.evaluation.study.records\n",
        "edge_runtime/room/a.py": "def f():\n    from adc_edge.cloud_trainer.server import Server\n",
    },
    heavy_heads: {
        "edge_runtime/room/command.py": "import numpy\n",
        "adc_edge/room/command.py": "from adc_edge.files import sha256\n",
    },
    unpickling: {
        "adc_edge/room/a.py": "import pickle\n",
        "cloud_trainer/room/a.py": "import torch\ntorch.load('x')\n",
        "export/room/a.py": "import torch\ntorch.load('x', weights_only=False)\n",
    },
    too_long: {
        "adc_edge/room/a.py": "\n" * 301,
        "evaluation/room/a.py": "def f():\n" + "    pass\n" * 60,
    },
    ambiguous: {"adc_edge/room/a.py": "class Planted: ...\n"},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert not rule(ROOT)


@pytest.mark.parametrize(
    ("rule", "file"), [(r, f) for r, files in RULES.items() for f in files], ids=lambda v: getattr(v, "__name__", v)
)
def test_a_violation_in_a_sub_folder_is_found(rule: Callable[[Path], list[str]], file: str, tmp_path: Path) -> None:
    for folder in ("adc_edge", *PARTS):
        (tmp_path / folder).mkdir()
    (tmp_path / "export" / "planted.py").write_text("Planted = 1\n")
    assert not rule(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(RULES[rule][file])
    (fault,) = rule(tmp_path)
    assert file in fault


def test_a_frozen_device_runs_without_torch_and_timm() -> None:
    files = core_files(ROOT) + part_files(ROOT, "edge_runtime") + part_files(ROOT, "calibration/link")
    users = {p for p in files if HEAVY & set(map(top, imports(p, top_level_only=True)))}
    assert {p.relative_to(ROOT).as_posix() for p in users} == TORCH


def test_only_the_seam_the_weights_and_the_exporter_know_timm() -> None:
    users = {p.relative_to(ROOT).as_posix() for p in source_files(ROOT) if "timm" in map(top, imports(p))}
    timm = {"adc_edge/method/split.py", "adc_edge/weights/adapting.py", "export/classes.py", "export/writing.py"}
    assert users == timm


def test_no_folder_is_crowded(tmp_path: Path) -> None:
    assert not crowded(ROOT)
    for folder in ("adc_edge", *PARTS, "export/room"):
        (tmp_path / folder).mkdir()
    for number in range(15):
        (tmp_path / "export" / "room" / f"m{number}.py").touch()
    assert crowded(tmp_path) == ["export/room: 15 modules"]


def test_functions_are_short() -> None:
    lengths = [code_lines(path, node) for path in source_files(ROOT) for node in functions(path)]
    assert len(lengths) > 1000
    assert statistics.median(lengths) <= 7
    assert statistics.quantiles(lengths, n=20)[-1] <= 35


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def code_lines(path: Path, node: ast.FunctionDef) -> int:
    """Lines of a function without docstring, blank lines and comments."""
    text = path.read_text().splitlines()
    start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
    signature = text[node.lineno - 1 : node.body[0].lineno - 1]
    body = [] if ast.get_docstring(node) and len(node.body) == 1 else text[start - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in signature + body)


def test_every_part_is_reachable_through_its_link() -> None:
    for part in PARTS:
        link = ROOT / "adc_edge" / part
        assert link.is_symlink()
        assert link.resolve() == ROOT / part
        assert not Path(link.readlink()).is_absolute()


def test_changelog_and_project_name_the_package_version_first() -> None:
    from adc_edge import __version__

    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert (headings[0], version[1]) == (__version__, __version__)


def test_every_file_that_docs_and_docstrings_name_exists() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    readers = [p for p in tracked if p.endswith((".py", ".md")) and p != "CHANGELOG.md"]
    named = {(p, n) for p in readers for n in re.findall(r"`([\w/]+\.py)`", (ROOT / p).read_text())}
    assert len(named) > 50
    assert not [(p, n) for p, n in named if not any(f"/{known}".endswith(f"/{n}") for known in tracked)]
