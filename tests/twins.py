"""Code that stands twice: functions, and runs of statements, that do the same.

    python tests/twins.py

prints the places of each, and fails if there is any. Runs of six lines or more are
twins if they differ only in names, attributes and constants, a name in the one standing
for one name in the other. Comments, docstrings, annotations and decorators do not
count. The flags of a parser and texts that get a name are no logic, and end a run.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("allmem_mlx", "convert", "examples")
LINES = 6

NO_LOGIC = {"annotation", "returns", "decorator_list", "ctx", "type_comment", "simple"}


def is_text(node: ast.AST) -> bool:
    """A text, also with values in it, or several."""
    if isinstance(node, ast.Tuple):
        return all(map(is_text, node.elts))
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and is_text(node.value)


def is_data(statement: ast.stmt) -> bool:
    """A flag of a parser, or texts that get a name."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        name = ast.unparse(statement.value.func)
        return name == "add" or name.endswith(".add_argument")
    return isinstance(statement, ast.Assign) and is_text(statement.value)


def shape(node, names: dict[str, int]):
    """A node without what twins may differ in; ``names`` are numbered as they come."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name):
            return names.setdefault(name, len(names))
        case ast.Constant() | ast.JoinedStr():
            return "constant"
        case ast.AnnAssign(target=target, value=value):
            return shape(ast.Assign([target], value), names)
        case ast.AST():
            fields = [x for name, x in ast.iter_fields(node) if name not in NO_LOGIC]
            return type(node).__name__, *(shape(x, names) for x in fields)
        case list():
            return tuple(shape(x, names) for x in node if not is_docstring(x))
        case int():
            return node
    return None


def lines(node: ast.stmt) -> int:
    """Of its text, without docstrings."""
    docs = [x for x in ast.walk(node) if x is not node and is_docstring(x)]
    return node.end_lineno - node.lineno + 1 - sum(map(lines, docs))


def runs(body: list[ast.stmt]) -> Iterator[tuple[object, list[ast.stmt]]]:
    """Every run of enough lines, and its shape."""
    for start in range(len(body)):
        names, shapes, total = {}, [], 0
        for end, statement in enumerate(body[start:], start + 1):
            if is_data(statement):
                break
            shapes.append(shape(statement, names))
            total += lines(statement)
            if total >= LINES:
                yield tuple(shapes), body[start:end]


def bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """The statements of every function, and of all that is inside it."""
    for node in ast.walk(tree):
        outside = isinstance(node, ast.Module | ast.ClassDef)
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                if outside:
                    functions = [x for x in value if isinstance(x, ast.FunctionDef)]
                    yield from ([x] for x in functions if not any(map(is_data, x.body)))
                else:
                    yield [x for x in value if not is_docstring(x)]


def inside(place: tuple, places: list[tuple]) -> bool:
    name, start, end = place
    return any(name == x and a <= start and end <= b for x, a, b in places)


def twins(sources: dict[str, str]) -> list[list[str]]:
    """The places of each run that stands more than once in ``{file: its text}``, from
    the longest on; not those that are part of longer ones."""
    groups = defaultdict(list)
    for name, text in sources.items():
        for body in bodies(ast.parse(text)):
            for key, run in runs(body):
                place = name, run[0].lineno, run[-1].end_lineno
                if all(x[0] != name or x[2] < place[1] for x in groups[key]):
                    groups[key].append(place)
    found: list[list[tuple]] = []
    for places in sorted(groups.values(), key=lambda x: x[0][1] - x[0][2]):
        if len(places) > 1 and not any(
            all(inside(place, others) for place in places) for others in found
        ):
            found.append(places)
    return [[f"{name}:{start}-{end}" for name, start, end in x] for x in found]


def sources() -> dict[str, str]:
    """The text of every file."""
    return {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
    }


def main() -> None:
    files = sources()
    found = twins(files)
    for places in found:
        print(*places, sep="\n", end="\n\n")
    print(f"{len(files)} files, {len(found)} twins")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
