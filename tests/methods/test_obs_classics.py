"""``OBS`` on the MONK's problems, on XOR and on digits."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow
from scipy import optimize

import nettrim_jax as nt


def trained(params, objective, batch, mask=None, steps=2000):
    """The params after L-BFGS, with zeros where the mask has none."""
    flat, fill = jax.flatten_util.ravel_pytree(params)
    keep = np.ones(flat.shape)
    if mask is not None:
        keep = np.asarray(jax.flatten_util.ravel_pytree(mask)[0], float)
    slope = jax.jit(jax.value_and_grad(lambda v: objective(fill(v), batch)))

    def both(v):
        value, grad = slope(jnp.asarray(v * keep))
        return float(value), np.asarray(grad, float) * keep

    found = optimize.minimize(
        both, np.asarray(flat), jac=True, method="L-BFGS-B", options={"maxiter": steps}
    )
    return fill(jnp.asarray(found.x * keep))


def with_ones(h):
    """Biases are weights of an input that is one, so that they can be removed."""
    return jnp.concatenate([h, jnp.ones((len(h), 1), h.dtype)], axis=1)


def sigmoids(params, batch):
    """One hidden layer and one output of sigmoids."""
    h = jax.nn.sigmoid(with_ones(batch[0]) @ params["in"])
    return jax.nn.sigmoid(with_ones(h) @ params["out"])[:, 0]


def squares(decay):
    def objective(params, batch):
        off = jnp.sum((sigmoids(params, batch) - batch[1]) ** 2) / 2
        return off + decay * sum(jnp.sum(a**2) for a in jax.tree.leaves(params))

    return objective


def one_by_one(params, batch, objective, right, least=1, damping=1e-4):
    """OBS removes a weight, the others are trained, and so on while all is right."""
    total = left = sum(a.size for a in jax.tree.leaves(params))
    best = params
    while left > least:
        level = nt.Sparsity(1 - (left - 1) / total, scope="network")
        method = nt.OBS(level, damping=damping)
        new = nt.prune(params, sigmoids, batch, method=method, progress=False)
        params = trained(new.params, objective, batch, new.mask)
        if not right(params):
            break
        left, best = left - 1, params
    return best, left, total


@slow
def test_on_xor_a_weight_goes():
    """Of the nine of 2-2-1 with biases; without a second one some case fails."""
    x = jnp.asarray([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = jnp.asarray([0.0, 1.0, 1.0, 0.0])

    def right(params):
        return bool(jnp.all((sigmoids(params, (x, y)) > 0.5) == (y > 0.5)))

    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        params = {"in": rng.normal(size=(3, 2)) * 2, "out": rng.normal(size=(3, 1)) * 2}
        params = jax.tree.map(jnp.asarray, params)
        params = trained(params, squares(1e-4), (x, y))
        if right(params):
            found.append(one_by_one(params, (x, y), squares(1e-4), right)[1])
    assert len(found) >= 3 and set(found) == {8}, found


# the MONK's problems (Thrun et al., 1991): six attributes, all 432 cases by their rules
SIZES = (3, 3, 2, 3, 4, 2)
CASES = np.array(list(itertools.product(*(range(1, n + 1) for n in SIZES))))
A = CASES.T
TRUE = {
    1: (A[0] == A[1]) | (A[4] == 1),
    2: (CASES == 1).sum(1) == 2,
    3: ((A[4] == 3) & (A[3] == 1)) | ((A[4] != 4) & (A[1] != 3)),
}
# one input for each value of each attribute, 17
INPUTS = np.concatenate(
    [CASES[:, [k]] == np.arange(1, n + 1) for k, n in enumerate(SIZES)], axis=1
).astype(float)


def monk(problem):
    """A draw as large as the published training set, with 5 % noise in the third."""
    rng = np.random.default_rng(0)
    pick = rng.permutation(432)[: {1: 124, 2: 169, 3: 122}[problem]]
    y = TRUE[problem][pick].astype(float)
    if problem == 3:
        flip = rng.permutation(len(y))[: round(0.05 * len(y))]
        y[flip] = 1 - y[flip]
    return jnp.asarray(INPUTS[pick]), jnp.asarray(y)


def right(params, x, y):
    return float(np.mean((np.asarray(sigmoids(params, (x,))) > 0.5) == (y > 0.5)))


# of Hassibi and Stork: 14 of 58, 15 of 39 and 4 of 39 weights are left; the second is
# not reached here: all networks stop at 17, and with a hundred times the damping at 16
@slow
@pytest.mark.parametrize(
    "problem, hidden, decay, seed, damping, left",
    [(1, 3, 1e-4, 3, 1e-4, 14), (2, 2, 1e-4, 0, 1e-2, 16), (3, 2, 1e-2, 0, 1e-4, 4)],
)
def test_monks_problems(problem, hidden, decay, seed, damping, left):
    """A weight goes, the others are trained anew, until so many are left.

    The accuracy is that on all 432 cases, where it is not less than before.
    """
    x, y = monk(problem)
    rng = np.random.default_rng(seed)
    params = {
        "in": rng.normal(size=(18, hidden)),
        "out": rng.normal(size=(hidden + 1, 1)),
    }
    params = jax.tree.map(lambda a: jnp.asarray(a) * 0.5, params)
    params = trained(params, squares(decay), (x, y))
    before = right(params, INPUTS, TRUE[problem])
    told = lambda _: True, left, damping
    new, count, _ = one_by_one(params, (x, y), squares(decay), *told)
    assert count == left
    assert sum(int(jnp.sum(a != 0)) for a in jax.tree.leaves(new)) == left
    after = right(new, INPUTS, TRUE[problem])
    assert after >= before and after >= (1 if problem < 3 else 0.97)


@slow
def test_on_digits_the_loss_stays_a_fifth_of_magnitudes():
    """64-16-10 at 70 % in each layer, without retraining."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x = jnp.asarray(digits.data[order] / 16)
    y = jnp.asarray(digits.target[order])
    known, other = (x[:1300], y[:1300]), (x[1300:], y[1300:])

    def apply_fn(params, batch):
        h = jnp.tanh(batch[0] @ params["w1"] + params["b1"][None, :])
        return h @ params["w2"] + params["b2"][None, :]

    def loss(params, batch):
        logs = jax.nn.log_softmax(apply_fn(params, batch))
        return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))

    def objective(params, batch):
        decay = sum(jnp.sum(a**2) for a in jax.tree.leaves(params))
        return loss(params, batch) + 1e-4 * decay

    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 16), "b1": (16,), "w2": (16, 10), "b2": (10,)}
    params = {k: jnp.asarray(rng.normal(size=s) * 0.2) for k, s in shapes.items()}
    params = trained(params, objective, known, steps=300)
    pattern = nt.Sparsity(0.7)
    lost = []
    for method in (nt.OBS(pattern, loss), nt.Magnitude(pattern)):
        new = nt.prune(params, apply_fn, known, method=method)
        assert float(new.report.sparsity) == pytest.approx(0.7, abs=1e-3)
        lost.append([float(loss(new.params, batch)) for batch in (known, other)])
    ours, theirs = np.array(lost)
    assert np.all(ours <= theirs / 5), lost
