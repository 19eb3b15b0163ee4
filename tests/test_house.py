"""The contract of the house: how long its rooms may be, and which of them may use which."""

import ast
import graphlib
from pathlib import Path

HOUSE = Path(__file__).parent.parent / "stylenb"
READING_LIST = "__init__ errors base photos losses lora inference loop training".split()
LONG_FUNCTIONS = {}  # "module.function": the reason for its more than 60 lines

TEXTS = {path.relative_to(HOUSE): path.read_text(encoding="utf-8") for path in HOUSE.rglob("*.py")}
TEXTS = {".".join(path.with_suffix("").parts): text for path, text in sorted(TEXTS.items())}
TREES = {module: ast.parse(text) for module, text in TEXTS.items()}
LINES = {module: text.count("\n") for module, text in TEXTS.items()}
MAIN = [module for module in TEXTS if "." not in module]


def imports(module):
    """The full names of all that a module imports, inside its functions too."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["stylenb", *module.split(".")][: -node.level] if node.level else []
            source = ".".join([*above, node.module or ""]).rstrip(".")
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


IMPORTS = {module: set(imports(module)) for module in TEXTS}
USES = {a: {b for b in TEXTS if f"stylenb.{b}" in IMPORTS[a]} - {a} for a in TEXTS}


def test_a_learner_reads_it_in_an_evening():
    assert sum(LINES[module] for module in READING_LIST) <= 2_100
    assert (
        sum(LINES[module] for module in MAIN) <= 5_750
    )  # of which 600 are for files of other programs
    assert sum(LINES.values()) <= 9_850
    long = [module for module in MAIN if LINES[module] > 400]
    assert not [one for one in long if " lines" not in (ast.get_docstring(TREES[one]) or "")]


def test_functions_have_at_most_60_lines():
    nodes = ((module, node) for module, tree in TREES.items() for node in ast.walk(tree))
    functions = ((m, node) for m, node in nodes if isinstance(node, ast.FunctionDef))
    sizes = {f"{m}.{node.name}": node.end_lineno - node.lineno + 1 for m, node in functions}
    assert {name: size for name, size in sizes.items() if size > 60}.keys() == LONG_FUNCTIONS.keys()


def test_imports_run_one_way():
    graphlib.TopologicalSorter(USES).prepare()  # raises CycleError
    below = {"photos"}
    while not (needs := set().union(*(USES[module] for module in below))) <= below:
        below |= needs
    for module in TEXTS:
        outside = {name.split(".")[0] for name in IMPORTS[module]}
        assert not outside & {"data", "notebooks", "tests"}, module
        if module in MAIN:
            assert not any(name.startswith("stylenb.course") for name in IMPORTS[module]), module
        if module.startswith("pocket."):
            above = {one for one in USES[module] - below if not one.startswith("pocket.")}
            assert not above, (module, above)
