"""Who imports whom: the rooms of the package, without circles and without arrows that point the wrong way."""

import ast
from collections import Counter
from pathlib import Path

import transformers_glipv2

NAME = "transformers_glipv2"
PACKAGE = Path(transformers_glipv2.__file__).parent
# What the upload to the Hub flattens into one folder.
HUB_CLOSURE = ("images", "layers", "backbones", "inference", "pipelines")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """The package's modules that a module imports anywhere, also inside functions."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            submodules = {f"{module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {module}
    return (found & MODULES.keys()) - {name}


GRAPH = {name: imports_of(name) for name in MODULES}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else ""


def test_no_module_imports_itself_by_way_of_others():
    # Where a folder's __init__ re-exports, its modules do not import the folder; so a circle is one of files.
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(GRAPH[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in GRAPH:
        visit(name)
    assert len(done) == len(MODULES) > 80


def test_rooms_import_downwards():
    forbidden = {
        "images": {"layers", "data", "training", "evaluation", "inference", "pipelines", "conversion", "hub", "cli"},
        "layers": {"data", "training", "evaluation", "inference", "pipelines", "conversion", "hub", "cli"},
        "backbones": {"data", "training", "evaluation", "inference", "pipelines", "conversion", "hub", "cli"},
        "data": {"evaluation", "training", "inference", "pipelines", "conversion", "hub", "cli"},
        "hub": {"training", "evaluation", "pipelines", "cli"},
        "evaluation": {"training", "pipelines", "conversion", "hub", "cli"},
        "inference": {"data", "training", "evaluation", "pipelines", "conversion", "hub", "cli"},
        "pipelines": {"data", "training", "evaluation", "conversion", "hub", "cli"},
        # The modules at the top: configuration, processors, models and what they share.
        "": {"data", "training", "evaluation", "conversion", "hub", "cli"},
    }
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in sorted(others)
        if room(other) in forbidden.get(room(name), ())
    ]
    assert wrong == []


def test_the_top_holds_what_a_user_of_transformers_expects():
    files = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len(files) <= 18, sorted(files)


def test_files_of_the_hub_have_names_of_their_own():
    folders = [PACKAGE, *(PACKAGE / folder for folder in HUB_CLOSURE)]
    names = Counter(path.name for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []
