"""Who may import whom: one table of packages, read against the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

import nettrim_jax

PACKAGE = pathlib.Path(nettrim_jax.__file__).parent
LONGEST = 400  # lines; a file that grows past them is two
ARROWS = 5.4  # from a place to others, on average at most
PARAMETERS = 6  # of a function that may be given by position
UNPACKED = 4  # names that a call's answer is unpacked into

GROUND = {
    "typing",
    "results",
    "_clip",
    "_compile",
    "_numerics",
    "_trees",
    "_values",
    "_sharding",
    "report",
}
# what each package may import, beside the ground
PACKAGES = {
    "convex": set(),
    "tracing": set(),
    "calibration": {"tracing"},
    "bounds": {"tracing"},
    "methods": {"convex", "tracing", "calibration"},
    "training": {"calibration", "convex", "methods"},
    "structure": {"tracing"},
    "execution": {"methods.base", "calibration", "tracing", "convex.config"},
    "files": set(),
    "allocation": {"execution", "methods", "calibration", "tracing", "structure"},
}
# what stands above all packages, in the order in which it may import itself
TOP = [
    "_progress",
    "_checks",
    "_drawing",
    "selection",
    "pruning",
    "refitting",
    "recovering",
    "_room",
    "sharing",
    "trimming",
    "_structure_plot",
    "plots",
]
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [".".join(f.relative_to(PACKAGE).with_suffix("").parts) for f in FILES]


def place(name):
    """The package of a file, or the file itself where it stands at the top."""
    return name.split(".")[0]


def tree(name):
    return ast.parse((PACKAGE / (name.replace(".", "/") + ".py")).read_text())


def imported(name):
    """Dotted names of all modules that a file imports, wherever it does."""
    out = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}.py: relative import; write nettrim_jax.x"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = whole.removeprefix("nettrim_jax.") in NAMES
                out.add(whole if known else node.module)
    return out


def own(name):
    """The files of this library that a file imports, without its name in front."""
    ours = {n for n in imported(name) if n.split(".")[0] == "nettrim_jax"}
    return {n.removeprefix("nettrim_jax").removeprefix(".") or "__init__" for n in ours}


def allowed(name, other):
    """Whether a file may import another one."""
    here, there = place(name), place(other)
    if name == "__init__" or here == there:
        return True
    if here in GROUND:
        return there in GROUND
    if there in GROUND:
        return True
    if here in PACKAGES:
        return bool({there, other} & PACKAGES[here])
    return there in PACKAGES or TOP.index(there) < TOP.index(here)


@pytest.mark.parametrize("name", NAMES)
def test_files_import_what_their_package_may(name):
    assert place(name) in {*GROUND, *PACKAGES, *TOP, "__init__"}, (
        f"{name}.py has no place: a new package or a new file at the top belongs into "
        "the table of this test and into docs/design.md"
    )
    wrong = sorted(other for other in own(name) if not allowed(name, other))
    assert not wrong, f"{name}.py imports {wrong}"


def test_there_is_no_circle():
    waiting = {name: own(name) - {name} for name in NAMES if name != "__init__"}
    while waiting:
        free = [n for n, needs in waiting.items() if not needs & waiting.keys()]
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {n: needs for n, needs in waiting.items() if n not in free}


def test_arrows_between_places_are_few():
    arrows = {
        (place(name), place(other))
        for name in NAMES
        for other in own(name)
        if name != "__init__" and place(name) != place(other)
    }
    places = {place(name) for name in NAMES if name != "__init__"}
    assert len(arrows) <= ARROWS * len(places), f"{len(arrows)} arrows"


@pytest.mark.parametrize("name", NAMES)
def test_jaxopt_is_behind_one_door(name):
    names = {other.split(".")[0] for other in imported(name)}
    assert name == "convex._jaxopt" or "jaxopt" not in names, (
        f"{name}.py imports jaxopt; import prox from nettrim_jax.convex._jaxopt"
    )
    proxes = ("convex.entrywise", "convex.groups")
    assert name in proxes or "convex._jaxopt" not in own(name), (
        f"{name}.py imports _jaxopt; proxes live in entrywise.py and groups.py"
    )


# ---- methods are known in their package and where users' words are read

KINDS = (
    "NetTrim Allotted Reconstruct Refit Rule MomentRule Magnitude Random Wanda".split()
)
KINDS += "SparseGPT LayerOBS Taylor Scored OBD OBS Fisher Saliency".split()
FLAGS = {"moments", "downstream", "pattern", "penalty", "entitled"}


def asks_for_a_kind(node):
    """Whether a call looks at which method it was given."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id in ("isinstance", "issubclass"):
        names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
        names |= {
            n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)
        }
        return bool(names & {*KINDS, "Method"})
    if node.func.id in ("getattr", "hasattr") and isinstance(
        node.args[1], ast.Constant
    ):
        return node.args[1].value in {*FLAGS, "shared", "budget", "statistics"}
    return False


@pytest.mark.parametrize(
    "name", [n for n in NAMES if place(n) not in ("methods", "selection", "__init__")]
)
def test_no_file_asks_which_method_it_has(name):
    wrong = [node.lineno for node in ast.walk(tree(name)) if asks_for_a_kind(node)]
    assert not wrong, f"{name}.py:{wrong}: ask the method through its protocol"
    flags = [
        node.lineno
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and node.attr in FLAGS
        and isinstance(node.value, ast.Name)
        and node.value.id in ("method", "m")
    ]
    assert not flags, f"{name}.py:{flags}: a flag of one kind of method"


@pytest.mark.parametrize("name", [n for n in NAMES if place(n) in ("execution",)])
def test_the_engine_knows_no_method(name):
    assert {n for n in own(name) if place(n) == "methods"} <= {"methods.base"}


# ---- sizes


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small(name):
    path = PACKAGE / (name.replace(".", "/") + ".py")
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, f"{name}.py has {lines} lines: make two files of it"


@pytest.mark.parametrize("name", NAMES)
def test_functions_take_few_parameters(name):
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args]
            given = [a for a in given if a.arg not in ("self", "cls")]
            assert len(given) <= PARAMETERS, f"{name}.{node.name}: {len(given)}"


@pytest.mark.parametrize("name", NAMES)
def test_records_of_other_files_are_read_by_name(name):
    module = tree(name)
    own = {node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef)}
    mine = {  # what holds a record that is defined in this very file
        argument.arg
        for argument in ast.walk(module)
        if isinstance(argument, ast.arg)
        and isinstance(argument.annotation, ast.Name)
        and argument.annotation.id in own
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            given = isinstance(node.value, ast.Call | ast.Name | ast.Attribute)
            given = given and getattr(node.value, "id", "") not in mine
            count = len(node.targets[0].elts)
            assert not given or count <= UNPACKED, f"{name}.py:{node.lineno}"


def test_the_body_of_prune_is_short():
    [prune] = [
        n
        for n in tree("pruning").body
        if isinstance(n, ast.FunctionDef) and n.name == "prune"
    ]
    first = prune.body[1]  # behind the docstring
    assert prune.end_lineno - first.lineno + 1 <= 40


# ---- names


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_no_public_name_is_that_of_a_file_beside_it(package):
    module = tree(f"{package}.__init__" if package else "__init__")
    names = {
        alias.asname or alias.name
        for node in module.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not (PACKAGE / node.module.split(".", 1)[-1] / f"{alias.name}.py").exists()
    }
    depth = package.count(".") + bool(package)
    files = {
        name.split(".")[depth]
        for name in NAMES
        if not package or name.startswith(package + ".")
    } - {"__init__"}
    namespaces = {"files", "methods", "training", "plots", "results", "structure"}
    assert not (names & files) - namespaces


def test_all_is_sorted_and_exists():
    for module in (
        nettrim_jax,
        nettrim_jax.files,
        nettrim_jax.methods,
        nettrim_jax.penalties,
        nettrim_jax.training,
        nettrim_jax.structure,
    ):
        assert list(module.__all__) == sorted(module.__all__), module
        for name in module.__all__:
            assert hasattr(module, name), name


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
