"""Which module imports which, inside functions too, and the order that it must keep.

    python tests/import_graph.py

prints the graph, room by room from the bottom up. It fails if modules import each other
in a circle, or if one imports from a room above its own.
"""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"allmem_mlx": "allmem_mlx", "allmem_mlx.convert": "convert"}

# From the bottom up. A name stands for a module, or for a package and all in it.
ROOMS = {
    "settings": "__init__ version errors blas config files",
    "memory": "memory",
    "model": "families cache ring attention model variants hooks",
    "model folders": "gguf_names hub weight_files model_folder adapters packed_memory",
    "conversion": "convert",
    "loading": "default_model loading",
    "documents": "documents",
    "state": "state_file state",
    "archive": "archive",
    "session": "responses streaming chat_template conversation snapshots session "
    "summaries",
    "command line": "cli",
    "measuring": "evaluation benchmarking",
    "training": "distillation",
    "commands": "generate chat summarise search evaluate benchmark cost distill "
    "convert.command convert.__main__ __main__",
}


def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that one imports anywhere in its text."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in known else source)
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def room(name: str) -> str:
    """The room of a module: that of its longest prefix in ``ROOMS``."""
    within = name.removeprefix("allmem_mlx").removeprefix(".") or "__init__"
    named = {x: title for title, names in ROOMS.items() for x in names.split()}
    while within not in named:
        within, dot, _ = within.rpartition(".")
        if not dot:
            raise KeyError(f"{name} is in no room")
    return named[within]


def faults(edges: dict[str, set[str]]) -> list[str]:
    """The arrows that point up, and a circle if there is one."""
    order = list(ROOMS)
    found = [
        f"{name} ({room(name)}) imports {other} ({room(other)})"
        for name, others in edges.items()
        for other in sorted(others)
        if order.index(room(other)) > order.index(room(name))
    ]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def main() -> None:
    edges = graph()
    rooms = defaultdict(list)
    for name in edges:
        rooms[room(name)].append(name)
    for title in ROOMS:
        print(f"\n{title}")
        for name in rooms[title]:
            others = " ".join(sorted(edges[name])).replace("allmem_mlx.", "")
            print(f"  {name.removeprefix('allmem_mlx.')} <- {others or '-'}")
    found = faults(edges)
    total = sum(map(len, edges.values()))
    print(f"\n{len(edges)} modules, {total} imports, {len(found)} faults")
    raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
