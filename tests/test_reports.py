"""Reports: plain data and back, tables that tell paths apart, leaves left alone."""

import json

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.report import tables
from nettrim_jax.results import MethodError

X = models.data(200, 8)
PARAMS = {"a": models.normal(8, 8), "b": models.normal(8, 4, seed=1)}
HALF = nt.Magnitude(nt.Sparsity(0.5))


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


# ---- plain data and back

REPORTS = {
    "rule": {"method": HALF},
    "program": {"method": nt.NetTrim(0.3), "held_out": 0.0},
    "bound": {"method": HALF, "bound": True},
    "budget": {"method": nt.NetTrim(deviation=0.2)},
    "share": {"method": nt.Wanda(nt.Sparsity(0.5, scope="network"))},
    "skipped": {"method": HALF, "exclude": "a"},
}


@pytest.mark.parametrize("name", only_fast(["rule", "skipped"], REPORTS))
def test_a_report_is_read_back(name):
    report = nt.prune(PARAMS, apply_fn, X, **REPORTS[name]).report
    plain = report.to_dict()
    again = nt.Report.from_dict(json.loads(json.dumps(plain, allow_nan=False)))
    assert again.to_dict() == plain
    assert str(again) == str(report)
    assert jax.tree.structure(again) == jax.tree.structure(report)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(report), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.sites[0].message == report.sites[0].message


@slow
def test_a_mapped_report_is_read_back():
    stack = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), PARAMS)
    report = jax.vmap(lambda p: nt.prune(p, apply_fn, X, method=HALF).report)(stack)
    plain = json.loads(json.dumps(report.to_dict()))
    again = nt.Report.from_dict(plain)
    assert again.to_dict() == plain
    np.testing.assert_array_equal(again.nonzeros, report.nonzeros)


def test_a_listing_is_read_back():
    listing = nt.sites(PARAMS, apply_fn, X, exclude="b")
    again = nt.Listing.from_dict(json.loads(json.dumps(listing.to_dict())))
    assert again == listing and str(again) == str(listing)


@pytest.mark.parametrize("data", [None, {}, {"sites": 1}, [1], "report"])
@pytest.mark.parametrize("kind", [nt.Report, nt.Listing])
def test_other_data_are_no_report(kind, data):
    name = kind.__name__
    match = rf"{name}.from_dict: expected what {name}.to_dict\(\) gave, got "
    with pytest.raises(nt.NetTrimError, match=match + type(data).__name__):
        kind.from_dict(data)


def test_within_jit_values_are_not_known():
    @jax.jit
    def prune(params):
        report = nt.prune(params, apply_fn, X, method=HALF).report
        match = r"report.to_dict\(\): its values are being traced; return the report"
        with pytest.raises(nt.NetTrimError, match=match):
            report.to_dict()
        with pytest.raises(nt.NetTrimError, match="result code: its value is being tr"):
            _ = report.sites[0].message
        assert str(report) == "Report of 2 layers, values not known or mapped"
        return report

    report = prune(PARAMS)
    assert report.to_dict()["nonzeros"] == 48
    assert report.sites[0].message.startswith("direct")


# ---- paths


def test_an_expression_finds_a_leaf_in_a_box():
    """By its own path and by that of the box, and by no other's."""
    model = models.get("nnx")
    params, apply_fn, batch = model.params, model.apply_fn, model.batch

    def paths(**settings):
        return [s.path for s in nt.sites(params, apply_fn, batch, **settings).sites]

    first, second = "first/kernel/value", "second/kernel/value"
    assert paths() == [first, second]
    assert paths(include=r"kernel$") == [first, second]
    assert paths(include=r"kernel/value$") == [first, second]
    assert paths(exclude=r"^first/kernel$") == [second]
    methods = {r"first/kernel$": None, r"value$": HALF}
    assert paths(method=methods) == [second]
    assert paths(method={r"kernel$": HALF}) == [first, second]
    with pytest.raises(MethodError, match="matches no layer; the layers are first/ker"):
        paths(include=r"first$")
    hidden = {r"kernel$": HALF, r"first/kernel/value$": None}
    match = r"all layers that 'first/kernel/value\$' matches \(first/kernel/value\) are"
    with pytest.raises(MethodError, match=match):
        paths(method=hidden)


def test_a_leaf_in_a_dict_has_no_box():
    params = {"attention": {"value": models.normal(8, 8)}, "b": models.normal(8, 4)}

    def apply_fn(params, x):
        return x @ params["attention"]["value"] @ params["b"]

    with pytest.raises(MethodError, match="matches no layer"):
        nt.sites(params, apply_fn, X, include=r"attention$")


def test_a_pruned_nnx_state_goes_back():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        net = nnx.Linear(8, 4, use_bias=False, rngs=nnx.Rngs(0))
    graph, state = nnx.split(net)
    apply_fn = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    pruned = nt.prune(state, apply_fn, X, method={r"kernel$": HALF})
    [kernel] = jax.tree.leaves(pruned.params)
    assert int((kernel != 0).sum()) == 16
    np.testing.assert_array_equal(nnx.merge(graph, pruned.params)(X), X @ kernel)


BLOCKS = [
    f"params/block_{i}/{part}/kernel/value"
    for i in (0, 1, 11)
    for part in ("self_attention/query", "self_attention/key", "mlp/wide_dense")
] + ["params/head/kernel/value"]


@pytest.mark.parametrize("width", [12, 20, 26, 30, 40, 60])
@pytest.mark.parametrize(
    "paths",
    [
        BLOCKS,
        ["a" * 60],
        ["a" * 30 + "b", "a" * 30 + "c"],
        ["x/" + "a" * 40 + "bc" + "d" * 40, "x/" + "a" * 40 + "cb" + "d" * 40],
        ["a/b", "a/b/c", "a"],
        ["", "a" * 40],
        [f"layers/{i}/weight" for i in range(40)],
    ],
)
def test_short_paths_tell_layers_apart(paths, width):
    texts = tables.shortened(paths, width)
    shown = [text for text in texts if text]
    assert len(set(shown)) == len(shown)
    assert all(len(text) <= width for text in texts)
    for path, text in zip(paths, texts, strict=True):
        if len(path) <= width:
            assert text == path
        elif text:  # its words stand in the path, in this order
            at = 0
            for word in text.replace("/", "…").split("…"):
                at = path.index(word, at) + len(word)


def test_the_block_and_the_layer_stay():
    texts = dict(zip(BLOCKS, tables.shortened(BLOCKS, 40), strict=True))
    wanted = "…/block_11/self_attention/query/…/value"
    assert texts["params/block_11/self_attention/query/kernel/value"] == wanted
    texts = dict(zip(BLOCKS, tables.shortened(BLOCKS, 26), strict=True))
    for path, text in texts.items():
        assert text and path.split("/")[1].split("_")[-1] in text


def test_a_path_that_cannot_be_short_has_a_line_of_its_own():
    middle = "x/" + "a" * 40 + "{}" + "d" * 40
    paths = [middle.format("bc"), middle.format("cb"), "short"]
    rows = [(path, [k]) for k, path in enumerate(paths)]
    lines = tables.grid([("number", 80)], rows)
    assert lines[1] == paths[0] and lines[2].split() == ["0"]
    assert lines[3] == paths[1] and lines[4].split() == ["1"]
    assert lines[5].split() == ["short", "2"]
    assert len(lines[2]) == len(lines[5]) <= 100


# ---- leaves left alone


def deep(depth):
    """A network with a bias and a factor of two dimensions in each layer."""
    params = {}
    for k in range(depth):
        params[f"layer{k}"] = {
            "w": models.normal(8, 8, seed=k),
            "bias": models.normal(1, 8),
            "gain": models.normal(1, 8),
        }
    params["table"] = models.normal(200, 8)

    def apply_fn(params, x):
        x = x + params["table"]
        for k in range(depth):
            layer = params[f"layer{k}"]
            x = jnp.tanh(x @ layer["w"])
            x = jnp.sin(x) * layer["gain"] + layer["bias"]
        return x

    return params, apply_fn


def test_biases_and_norms_share_a_line():
    listing = nt.sites(*deep(6), X)
    lines = [line for line in str(listing).split("\n") if "left alone" in line]
    table = "left alone: table: added to other values, which is no linear operation"
    assert lines == ["left alone: 12 biases and norms", f"{table} (`add`)"]
    skipped = dict(listing.skipped)
    assert len(skipped) == 13
    assert skipped["layer3/bias"].startswith("a bias or norm: added to other values")
    assert skipped["layer3/gain"].startswith("a bias or norm: multiplied entry by ent")
    assert len(listing.to_dict()["skipped"]) == 13
    # so few have a line each
    lines = str(nt.sites(*deep(1), X)).split("\n")[-3:]
    assert [line.split(": ")[1] for line in lines] == [
        "layer0/bias",
        "layer0/gain",
        "table",
    ]


def test_leaves_of_one_reason_share_two_lines():
    listing = nt.sites(*deep(5), X, exclude="layer[1-4]/w")
    lines = str(listing).split("\n")
    at = lines.index("left alone: 4 leaves: exclude='layer[1-4]/w'")
    assert lines[at + 1] == "  layer1/w, layer2/w, layer3/w, layer4/w"
    assert max(map(len, lines)) <= 100


def test_stacked_biases_are_biases():
    """The steps of a scan have one each."""
    params = {"w": models.normal(3, 8, 8), "bias": models.normal(3, 8)}

    def apply_fn(params, x):
        def step(x, layer):
            return jnp.sin(jnp.tanh(x @ layer["w"])) + layer["bias"][None], None

        return jax.lax.scan(step, x, params)[0]

    [(path, reason)] = nt.sites(params, apply_fn, X).skipped
    assert path == "bias" and reason.startswith("a bias or norm: added")
