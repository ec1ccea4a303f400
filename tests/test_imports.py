"""Who may import whom: the order of the rooms, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

import nettrim_jax

PACKAGE = pathlib.Path(nettrim_jax.__file__).parent
LONGEST = 400  # lines; a room that grows past them is two rooms

# A room imports only from rooms above it, so there are no cycles.
ORDER = [
    "typing",
    "results",
    # numerics: matrices only
    "_jaxopt",
    "linalg",
    "spectral",
    "slopes",
    "entrywise",
    "grouping",
    "penalties",
    "responses",
    "patterns",
    "criteria",
    "curvature",
    "reconstruction",
    "programs",
    "interop",
    "settings",
    "solutions",
    "implicit",
    "steps",
    "derivatives",
    "admm",
    "paths",
    "refitting",
    # the network as a program: no solver
    "jaxprs",
    "indexing",
    "facts",
    "folding",
    "following",
    "uses",
    "tracing",
    "activations",
    "cascade",
    "sensitivity",
    # what joins the two
    "budgets",
    "splitting",
    "methods",
    "batching",
    "masks",
    "answers",
    "layers",
    "tables",
    "report",
    "progress",
    "checks",
    "loading",
    "products",
    "lipschitz",
    "bounds",
    "normalizing",
    "dealing",
    "selection",
    "supports",
    "solving",
    "meters",
    "sharing",
    "steering",
    "pruning",
    "restoring",
    "training",
    "drawing",
    "plots",
    "__init__",
]
SHARED = {"typing", "results"}
SOLVER = set(ORDER[ORDER.index("_jaxopt") : ORDER.index("jaxprs")])
NETWORK = set(ORDER[ORDER.index("jaxprs") : ORDER.index("methods")])
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py"))


def tree(room):
    return ast.parse((PACKAGE / f"{room}.py").read_text())


def imported(room):
    """Dotted names of all modules that a room imports, wherever it does."""
    out = set()
    for node in ast.walk(tree(room)):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}.py: relative import; write nettrim_jax.x"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            out |= names if node.module == "nettrim_jax" else {node.module}
    return out


def rooms_of(room):
    """The rooms that a room imports; the package itself counts as ``__init__``."""
    names = [n.split(".") for n in imported(room) if n.split(".")[0] == "nettrim_jax"]
    return {
        name[1] if len(name) > 1 and name[1] in ROOMS else "__init__" for name in names
    }


def test_the_package_is_flat():
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    assert not folders, "one folder, one room per file: see docs/design.md"


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_a_place(room):
    assert room in ORDER, (
        f"{room}.py has no place among the rooms: add it to ORDER in {__file__}, below "
        "everything that it imports, and describe it in docs/design.md"
    )
    design = PACKAGE.parent / "docs" / "design.md"
    assert room == "__init__" or f"`{room}" in design.read_text(), (
        f"docs/design.md does not name {room}.py: say there what the room is for"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_upwards_in_the_list(room):
    above = ORDER[: ORDER.index(room)] if room in ORDER else []
    wrong = rooms_of(room) - set(above)
    assert not wrong, f"{room}.py imports {sorted(wrong)}, which are not above it"


@pytest.mark.parametrize("room", sorted(SOLVER & set(ROOMS)))
def test_numerics_know_no_models(room):
    wrong = rooms_of(room) - SOLVER - SHARED
    assert not wrong, f"{room}.py is numerics and imports {sorted(wrong)}"


@pytest.mark.parametrize("room", sorted(NETWORK & set(ROOMS)))
def test_finding_layers_knows_no_solver(room):
    wrong = rooms_of(room) & SOLVER
    assert not wrong, f"{room}.py finds layers and imports {sorted(wrong)}"


@pytest.mark.parametrize("room", ROOMS)
def test_jaxopt_is_behind_one_door(room):
    names = {name.split(".")[0] for name in imported(room)}
    assert room == "_jaxopt" or "jaxopt" not in names, (
        f"{room}.py imports jaxopt; import prox from nettrim_jax._jaxopt"
    )
    assert room in ("entrywise", "grouping") or "_jaxopt" not in rooms_of(room), (
        f"{room}.py imports _jaxopt; proxes live in entrywise.py and grouping.py"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_no_public_function_is_named_like_a_room(room):
    nodes = [
        n for n in tree(room).body if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]
    same = {node.name for node in nodes} & set(ROOMS)
    assert not same, f"{sorted(same)}: defined in {room}.py, and a room"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_small(room):
    lines = len((PACKAGE / f"{room}.py").read_text().splitlines())
    assert lines <= LONGEST, f"{room}.py has {lines} lines: make two rooms of it"


def test_all_is_sorted_and_exists():
    assert list(nettrim_jax.__all__) == sorted(nettrim_jax.__all__)
    for name in nettrim_jax.__all__:
        assert hasattr(nettrim_jax, name), name


def run(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )


def test_import_is_silent():
    answer = run("import nettrim_jax")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_import_starts_no_device():
    # the number of CPU devices can be set only before a backend starts
    answer = run(
        "import nettrim_jax, jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "print(jax.device_count())"
    )
    assert answer.stdout == "3\n", answer.stderr


def test_import_is_light():
    heavy = ["flax", "optax", "haiku", "equinox", "matplotlib", "sklearn", "cvxpy"]
    answer = run(
        f"import nettrim_jax, sys; print(sorted(set({heavy}) & set(sys.modules)))"
    )
    assert answer.stdout == "[]\n", answer.stderr
