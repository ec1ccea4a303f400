"""What is taken, what is left alone, and the table that says so."""

import json

import jax
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError

METHOD = nt.NetTrim(epsilon=0.2)


def listing(name, **kwargs):
    model = models.get(name)
    return nt.sites(model.params, model.apply_fn, model.batch, **kwargs)


def paths(listing):
    return [site.path for site in listing.sites]


@pytest.mark.parametrize(
    "name", only_fast(["square"], ["square", "convolutions", "tied-embedding"])
)
def test_lists_what_prune_takes(name):
    model, there = models.get(name), listing(name)
    report = nt.prune(
        model.params, model.apply_fn, model.batch, method=METHOD, held_out=0.0
    ).report
    assert paths(there) == [site.path for site in report.sites]
    assert there.skipped == report.skipped
    assert there.size == report.size
    for site, done in zip(there.sites, report.sites, strict=True):
        assert (site.kind, site.response) == (done.kind, done.response)
        assert site.size == done.size
        assert site.shape == done.shape  # no more rows than prune keeps


def test_the_table_says_all():
    text = str(listing("square", exclude="1/w"))
    assert text.splitlines()[0].split()[:3] == ["layer", "kind", "response"]
    assert "0/w   dense     relu      1        64      8      8" in text
    assert text.splitlines()[-1] == "left alone: 1/w: exclude='1/w'"
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_table_is_plain_data():
    plain = json.loads(json.dumps(listing("tied-embedding").to_dict()))
    assert plain["sites"][0]["path"] == "hidden"
    assert plain["sites"][0]["shape"] == [1, 64, 8, 8]
    assert plain["skipped"][0]["path"] == "embedding"


@pytest.mark.parametrize("pick", ["0|2", lambda site: site.path in ("0/w", "2/w")])
def test_include_and_exclude(pick):
    assert paths(listing("square", include=pick)) == ["0/w", "2/w"]
    assert paths(listing("square", exclude=pick)) == ["1/w"]
    both = listing("square", include=pick, exclude="^0")
    assert paths(both) == ["2/w"]
    reasons = dict(both.skipped)
    assert "exclude='^0'" in reasons["0/w"] and "include=" in reasons["1/w"]


def test_a_function_sees_the_layer():
    seen = []
    listing("square", exclude=lambda site: seen.append(site) or False)
    assert [(s.path, s.response, s.shape) for s in seen] == [
        ("0/w", "relu", (1, 64, 8, 8)),
        ("1/w", "relu", (1, 64, 8, 8)),
        ("2/w", "linear", (1, 64, 8, 8)),
    ]


@slow
def test_prune_leaves_what_is_excluded():
    model = models.get("square")
    answer = nt.prune(
        model.params, model.apply_fn, model.batch, method=METHOD, include="1"
    )
    assert [site.path for site in answer.report.sites] == ["1/w"]
    for i in "02":
        np.testing.assert_array_equal(answer.params[i]["w"], model.params[i]["w"])
    assert (np.asarray(answer.params["1"]["w"]) == 0).any()


@slow
def test_a_tied_embedding_is_pruned_only_if_asked():
    model = models.get("tied-embedding")
    plain = listing("tied-embedding")
    assert paths(plain) == ["hidden"]
    assert "looked up by index" in dict(plain.skipped)["embedding"]
    assert "include=" in dict(plain.skipped)["embedding"]
    answer = nt.prune(
        model.params, model.apply_fn, model.batch, method=METHOD, include="."
    )
    assert [site.path for site in answer.report.sites] == ["hidden", "embedding"]
    zeros = np.asarray(answer.params["embedding"]) == 0
    assert zeros.any() and not zeros.all()


@pytest.mark.parametrize("what", ["include", "exclude"])
@pytest.mark.parametrize(
    "pick, match",
    [
        ("nothing", "='nothing' matches no layer; the layers are 0/w, 1/w, 2/w"),
        ("(", "expected a regular expression or a function"),
        (3, "=3: expected a regular expression or a function of a layer"),
    ],
)
def test_selectors_that_are_wrong(what, pick, match):
    model = models.get("square")
    for call in (nt.sites, nt.prune):
        with pytest.raises(MethodError, match=what + ".*" + match.replace("(", r"\(")):
            call(model.params, model.apply_fn, model.batch, **{what: pick})


# ---- one matrix, used several times


@slow
def test_uses_of_one_matrix_are_one_problem():
    # twice over half of the rows is once over all of them
    w, x = models.normal(8, 6), models.data(64, 8)
    once = nt.prune(
        {"w": w}, lambda p, x: jax.nn.relu(x @ p["w"]), x, method=METHOD, held_out=0.0
    )
    twice = nt.prune(
        {"w": w},
        lambda p, x: [jax.nn.relu(half @ p["w"]) for half in (x[:32], x[32:])],
        x,
        method=METHOD,
        held_out=0.0,
    )
    [one], [two] = once.report.sites, twice.report.sites
    assert one.shape == two.shape == (1, 64, 8, 6)
    # the same program with its rows in another order
    np.testing.assert_allclose(one.error, two.error, rtol=1e-3)
    np.testing.assert_allclose(once.params["w"], twice.params["w"], atol=2e-2)


@slow
@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
@pytest.mark.parametrize(
    "name", only_fast(["siamese"], ["siamese", "called-twice", "tied-scales"])
)
def test_tied_layers_keep_their_promise(name, mode):
    model = models.get(name)
    answer = nt.prune(
        model.params, model.apply_fn, model.batch, method=METHOD, mode=mode
    )
    for site in answer.report.sites:
        # in cascade what is off may rise to its limit, beside the budget
        if mode == "parallel":
            assert float(site.error) <= float(site.epsilon) * (1 + 2e-3) + 1e-5
        assert int(site.nonzeros) < site.size
    if name == "siamese":  # its bias is added at both uses and moves with it
        old, new = model.params["both"]["b"], answer.params["both"]["b"]
        assert not np.array_equal(old, new)
