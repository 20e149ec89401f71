"""The structure of the package: rooms import from rooms above them only, and files and functions stay small.

Imports are read from the source, those inside functions, for type checking and through the public names included.
"""

import ast
import functools
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import starft_hf


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "starft_hf"
CODE = [PACKAGE, ROOT / "tests", ROOT / "benchmarks"]

# A room may import from the rooms of its own line and of the lines above it.
LEVELS = (
    {"utils"},
    {"objectives", "models"},
    {"data"},
    {"reference", "spuriosity", "evaluation"},
    {"weights", "report", "hub"},
    {"training"},
    {"demo", "cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = {"__init__.py", "__main__.py", "py.typed"}

MOST_LINES = 400
MOST_PARAMETERS = 8
# What users call, with a keyword for each setting.
ENTRY_POINTS = {
    "StarFTTrainer.__init__",
    "audit",
    "compare",
    "discover_spuriosity",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "export",
    "generate_pool",
    "predict",
    "push_folder",
    "tune",
    "repair",
}


def module_name(file, root):
    """The dotted name of a file below the folder of `root`."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file, root):
    """What a file imports, as pairs: a module, and a name from it or None."""
    module, nodes = module_name(file, root), list(ast.walk(ast.parse(file.read_text("utf-8"))))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    package = {alias.asname or root.name for alias in aliases if alias.name == root.name}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in package:
            yield root.name, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((part.value, None) for part in node.args if isinstance(getattr(part, "value", None), str))
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                is_package = file.name == "__init__.py"
                base = module.split(".")[: len(module.split(".")) - node.level + is_package]
                source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def exports(root):
    """Where the names of the lazy public API come from."""
    for node in ast.parse((root / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if getattr(target, "id", None) == "_EXPORTS":
                return ast.literal_eval(node.value)
    return {}


@functools.lru_cache
def import_graph(root):
    """The modules of the package that every module of a room imports."""
    files = {module_name(file, root): file for file in sorted(root.rglob("*.py"))}
    public = exports(root)
    graph = {}
    for module, file in files.items():
        if file.parent == root:
            continue
        pairs = []
        for source, name in imported(file, root):
            names = public if (source, name) == (root.name, "*") else [name]
            pairs += [(public.get(name, source) if source == root.name else source, name) for name in names]
        # Of `from room import module`, the module counts, and not the room's __init__.
        targets = {dotted if (dotted := f"{source}.{name}") in files else source for source, name in pairs}
        graph[module] = (targets & set(files)) - {root.name, module}
    return graph


def room_of(module):
    return module.split(".")[1]


def circles(graph):
    """Circles of a graph, one after the other, each without an edge of those before it."""
    graph, found = {node: set(targets) for node, targets in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            circle = error.args[1]
            found.append(" <- ".join(circle))
            graph[circle[1]].remove(circle[0])


def circles_of_files(root):
    return circles(import_graph(root))


def circles_of_rooms(root):
    rooms = defaultdict(set)
    for module, targets in import_graph(root).items():
        rooms[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module)}
    return circles(rooms)


def imports_upwards(root):
    return [
        f"{module} imports {target}"
        for module, targets in import_graph(root).items()
        for target in sorted(targets)
        if LEVEL_OF.get(room_of(target), len(LEVELS)) > LEVEL_OF.get(room_of(module), 0)
    ]


def loose_modules(root):
    # Folders that git has emptied may still hold compiled files.
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted({path.parts[0] for path in files} - FILES - set(LEVEL_OF))


def long_files(*roots):
    sizes = {file: len(file.read_text("utf-8").splitlines()) for root in roots for file in sorted(root.rglob("*.py"))}
    return [f"{file.name} has {lines} lines" for file, lines in sizes.items() if lines > MOST_LINES]


def long_signatures(root):
    found = []
    for file in sorted(root.rglob("*.py")):
        for name, function in functions(ast.parse(file.read_text("utf-8"))):
            given = function.args
            names = [part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MOST_PARAMETERS and name not in ENTRY_POINTS:
                found.append(f"{module_name(file, root)}: {name} has {count} parameters")
    return found


def functions(node, prefix=""):
    """All functions of a syntax tree, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, child
        yield from functions(child, name)


def imports_of_tests(*roots):
    files = [(file, root) for root in roots for file in sorted(root.rglob("*.py"))]
    # With pytest's default import mode, a test can import its neighbor without the folder's name.
    stems = {file.stem for file, _ in files if file.stem.startswith("test_")} | {"conftest"}
    found = []
    for file, root in files:
        for source, name in imported(file, root):
            parts = source.split(".")
            ours = parts[0] in {root.name for root in roots} | stems
            # A name that is imported may be a module, or a function that only happens to begin with "test_".
            if ours and (name in stems or any(part == "conftest" or part.startswith("test_") for part in parts)):
                found.append(f"{file.name} imports {source}{'.' + name if name else ''}")
    return found


CHECKS = {
    "no circle of files": (circles_of_files, PACKAGE),
    "no circle of rooms": (circles_of_rooms, PACKAGE),
    "no import upwards": (imports_upwards, PACKAGE),
    "no loose module": (loose_modules, PACKAGE),
    "no file over 400 lines": (long_files, *CODE),
    "no function with more than 8 parameters": (long_signatures, PACKAGE),
    "no test that imports from a test": (imports_of_tests, ROOT / "tests", ROOT / "benchmarks"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_house(name):
    check, *roots = CHECKS[name]
    assert check(*roots) == []


def test_the_rooms_are_those_that_contributing_describes():
    described = [
        set(re.findall(r"`(\w+)/`", line.split("|")[1]))
        for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()
        if re.match(r"\| `\w+/`", line)
    ]
    assert described == list(LEVELS)
    assert set(LEVEL_OF) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_public_names_are_read():
    assert exports(PACKAGE) == starft_hf._EXPORTS


PARAMETERS = ", ".join(f"p{number}" for number in range(9))


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        (
            "no circle of files",
            {"data/a.py": "from fake.data import b", "data/b.py": "def f():\n    from fake.data.a import x"},
            ["fake.data.b <- fake.data.a <- fake.data.b", "fake.data.a <- fake.data.b <- fake.data.a"],
        ),
        (
            "no circle of rooms",
            {
                "models/a.py": "import fake.objectives.b",
                "models/c.py": "",
                "objectives/d.py": "from ..models import c",
            },
            ["models <- objectives <- models", "objectives <- models <- objectives"],
        ),
        (
            "no import upwards",
            {"data/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fake.training import b"},
            ["fake.data.a imports fake.training.b"],
        ),
        (
            "no import upwards",
            {
                "data/a.py": "from fake import Public, __version__",
                "__init__.py": "_EXPORTS = {'Public': 'fake.hub.b'}",
            },
            ["fake.data.a imports fake.hub.b"],
        ),
        (
            "no import upwards",
            {
                "data/a.py": "import fake\nfake.Public",
                "data/b.py": "from fake import *",
                "data/c.py": "import fake as f\nf.training",
                "data/d.py": "importlib.import_module('fake.training.b')",
                "training/__init__.py": "",
                "__init__.py": "_EXPORTS: dict[str, str] = {'Public': 'fake.hub.b'}",
            },
            [
                "fake.data.a imports fake.hub.b",
                "fake.data.b imports fake.hub.b",
                "fake.data.c imports fake.training",
                "fake.data.d imports fake.training.b",
            ],
        ),
        (
            "no import upwards",
            {"data/a.py": "from fake.odd import a", "odd/a.py": ""},
            ["fake.data.a imports fake.odd.a"],
        ),
        ("no loose module", {"helpers.py": "", "__main__.py": "", "misc/a.py": ""}, ["helpers.py", "misc"]),
        ("no loose module", {"settings/a.yaml": "", "old/__pycache__/a.pyc": ""}, ["settings"]),
        ("no file over 400 lines", {"data/a.py": "\n" * 400, "data/b.py": "\n" * 401}, ["b.py has 401 lines"]),
        (
            "no function with more than 8 parameters",
            {"data/a.py": f"class A:\n    def f(self, {PARAMETERS[4:]}): ...\n    def g(self, *, {PARAMETERS}): ..."},
            ["fake.data.a: A.g has 9 parameters"],
        ),
        ("no function with more than 8 parameters", {"data/a.py": f"def compare({PARAMETERS}): ..."}, []),
        (
            "no test that imports from a test",
            {"data/test_a.py": "from fake.data.test_b import x\nfrom fake.support import y", "data/conftest.py": ""},
            ["test_a.py imports fake.data.test_b.x"],
        ),
        (
            "no test that imports from a test",
            {"data/test_a.py": "from .conftest import x\nfrom test_this import y"},
            ["test_a.py imports fake.data.conftest.x"],
        ),
        (
            "no test that imports from a test",
            {"data/test_a.py": "import test_b", "data/test_b.py": "import fake\nfake.test_a"},
            ["test_a.py imports test_b", "test_b.py imports fake.test_a"],
        ),
    ],
)
def test_the_checks_find_what_they_are_for(name, files, found, tmp_path):
    root = tmp_path / "fake"
    targets = {"training/b.py": "", "hub/b.py": "", "objectives/b.py": "", "__init__.py": ""}
    for path, text in {**targets, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    problems = CHECKS[name][0](root)
    assert problems in ([problem] for problem in found) if "circle" in name else problems == found
