"""The house rules of STYLE.md and docs/architecture.md that a machine can check."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tandem"

ROOMS = (
    ("errors",),
    ("types",),
    ("contracts",),
    ("config",),
    ("observe",),
    ("hooks",),
    ("data", "rewards", "filters", "algo", "packing", "parallel"),
    ("kernels",),
    ("models",),
    ("checkpoint",),
    ("carriers",),
    ("engine", "rollout", "train", "sync", "server"),
    ("loop", "loop_async"),
    ("runtime",),
    ("dashboard",),
    ("cli",),
)
"""A room may import the rooms on lines above its own, never its own line, never below."""

ONLY_IN = {"ray": "runtime/ray", "sglang": "engine/sglang", "sglang_router": "engine/sglang"}
"""Libraries that one folder of the package alone may import."""

CONFIG_LIBRARIES = {"yaml"}
"""What config imports besides the standard library, inside the function that needs it."""

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
"""`path` or `path::function` with its size: what may be longer, until it is split. Only shrinks."""

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "misc", "manager", "managers", "base"}

# put together here so that this file is not its own finding
MACHINE_PATHS = re.compile(
    "|".join(re.escape(slash + name) for slash, name in (("/", "work/"), ("/", "root/")))
    + "|/tmp/bash" + "_jobs"
)  # fmt: skip

CODE_FOLDERS = ("src", "tests", "tools", "examples", "benchmarks", "scripts")
CODE_SUFFIXES = {".py", ".sh", ".toml"}
TEXT_SUFFIXES = CODE_SUFFIXES | {".md", ".txt", ".yaml", ".yml"}


def files_under(folders, suffixes):
    found = [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts
    ]
    assert found, f"no files in {folders}"
    return found


def python_files():
    return [*files_under(CODE_FOLDERS, {".py"}), *sorted(ROOT.glob("*.py"))]


def package_files():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def room_of(path):
    """The room that a file of the package belongs to; None for the package's own files."""
    part = path.relative_to(PACKAGE).parts[0]
    return None if part.startswith("__") else part.removesuffix(".py")


def imported_modules(tree):
    """(line, dotted name) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def imported_rooms(tree):
    """(line, room) of every import out of the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tandem":
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tandem."):
            yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "tandem" and len(parts) > 1:
                    yield node.lineno, parts[1]


def line_of_room(room):
    return next((number for number, rooms in enumerate(ROOMS) if room in rooms), None)


def is_allowed(importer, imported):
    """Whether a room may import a name out of the package."""
    target = line_of_room(imported)
    if imported == importer or target is None:  # itself, or `__version__` of the package
        return target is not None or imported.startswith("__")
    return target < line_of_room(importer)


def functions_of(tree, prefix=""):
    """(qualified name, node) of every function, methods and inner functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions_of(node, f"{name}.")
        else:
            yield from functions_of(node, prefix)


def check_sizes(sizes, limit, exceptions):
    """Complaints about what is longer than allowed and about exceptions that nobody needs."""
    found = [
        f"{name}: {size} lines, at most {exceptions.get(name, limit)}"
        for name, size in sizes.items()
        if size > exceptions.get(name, limit)
    ]
    found += [
        f"{name}: is {sizes.get(name, 'gone')}, take it off the list of exceptions"
        for name in exceptions
        if sizes.get(name, 0) <= limit
    ]
    return found


def test_every_room_of_the_package_is_in_the_list():
    present = {room for room in map(room_of, package_files()) if room is not None}
    listed = {room for rooms in ROOMS for room in rooms}
    assert present <= listed, f"not in ROOMS: {sorted(present - listed)}"


def test_rooms_import_only_rooms_on_lines_above():
    wrong = [
        f"{name_of(path)}:{line}: {room_of(path)} may not import {room}"
        for path in package_files()
        if room_of(path) is not None
        for line, room in imported_rooms(parse(path))
        if not is_allowed(room_of(path), room)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_rule_knows_above_beside_and_below():
    assert is_allowed("train", "algo")
    assert is_allowed("train", "train")
    assert is_allowed("observe", "__version__")
    assert not is_allowed("train", "rollout")  # beside
    assert not is_allowed("algo", "train")  # below
    assert not is_allowed("algo", "no_such_room")


def test_imports_are_absolute():
    wrong = [
        f"{name_of(path)}:{line}"
        for path in python_files()
        for line, module in imported_modules(parse(path))
        if module.startswith(".")
    ]
    assert not wrong, "\n".join(wrong)


def test_ray_and_sglang_are_imported_in_their_folders_alone():
    wrong = [
        f"{name_of(path)}:{line}: {module} belongs to {ONLY_IN[module.split('.')[0]]}"
        for path in package_files()
        for line, module in imported_modules(parse(path))
        if module.split(".")[0] in ONLY_IN
        and PACKAGE / ONLY_IN[module.split(".")[0]] not in path.parents
    ]
    assert not wrong, "\n".join(wrong)


def test_config_needs_the_standard_library_alone():
    allowed = set(sys.stdlib_module_names) | CONFIG_LIBRARIES | {"tandem"}
    wrong = [
        f"{name_of(path)}:{line}: {module}"
        for path in (PACKAGE / "config").rglob("*.py")
        for line, module in imported_modules(parse(path))
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["tandem", "tandem.config", "tandem.cli"])
def test_light_modules_load_nothing_heavy(module):
    heavy = ("torch", "transformers", "numpy", "yaml", "rich", "aiohttp", "sympy", "ray")
    program = (
        f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules], end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]"


def test_files_are_short():
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in python_files()}
    wrong = check_sizes(sizes, MAX_FILE_LINES, LONG_FILES)
    assert not wrong, "\n".join(wrong)


def test_functions_are_short():
    sizes = {
        f"{name_of(path)}::{name}": node.end_lineno - node.lineno + 1
        for path in python_files()
        for name, node in functions_of(parse(path))
    }
    wrong = check_sizes(sizes, MAX_FUNCTION_LINES, LONG_FUNCTIONS)
    assert not wrong, "\n".join(wrong)


def test_size_exceptions_may_only_shrink():
    assert check_sizes({"a": 61, "b": 60}, 60, {}) == ["a: 61 lines, at most 60"]
    assert check_sizes({"a": 61}, 60, {"a": 61}) == []
    assert check_sizes({"a": 62}, 60, {"a": 61}) == ["a: 62 lines, at most 61"]
    assert len(check_sizes({"a": 60}, 60, {"a": 61, "gone": 99})) == 2


def test_names_of_files_and_classes_name_a_job():
    wrong = [
        name_of(path)
        for path in python_files()
        if FORBIDDEN_NAMES & set(path.stem.lower().strip("_").split("_"))
    ]
    wrong += [
        f"{name_of(path)}: class {node.name}"
        for path in package_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
        and re.search(r"(Utils?|Helpers?|Misc|Managers?|Base)$", node.name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_does_not_print():
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in package_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_hold_no_state_that_changes():
    """No `global`, and no empty container at module level, which only waits to be filled."""
    wrong = []
    for path in package_files():
        tree = parse(path)
        wrong += [
            f"{name_of(path)}:{node.lineno}: global {', '.join(node.names)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Global)
        ]
        wrong += [
            f"{name_of(path)}:{node.lineno}: an empty container at module level"
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_empty_container(node.value)
        ]
    assert not wrong, "\n".join(wrong)


def is_empty_container(node):
    if isinstance(node, (ast.List, ast.Set)):
        return not node.elts
    if isinstance(node, ast.Dict):
        return not node.keys
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return is_call and node.func.id in {"list", "dict", "set", "defaultdict"} and not node.keywords


def test_code_is_ascii():
    code = [
        *files_under(CODE_FOLDERS, CODE_SUFFIXES),
        *sorted(ROOT.glob("*.py")),
        ROOT / "Makefile",
    ]
    wrong = [
        f"{name_of(path)}:{number}"
        for path in code
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if not line.isascii()
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_knows_the_paths_of_one_machine():
    texts = files_under((*CODE_FOLDERS, "docs"), TEXT_SUFFIXES)
    texts += [path for path in ROOT.iterdir() if path.suffix in TEXT_SUFFIXES]
    texts += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    wrong = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_architecture_page_lists_the_rooms_in_import_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, flags=re.MULTILINE)
    listed = tuple(tuple(re.findall(r"`([a-z_]+)`", row)) for row in rows)
    assert listed == ROOMS
