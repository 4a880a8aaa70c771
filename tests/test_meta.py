"""The meta-network against plain numpy: sketch, similarity, attention, hybrids, chain rule."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch

from amn_mpi import blocks, meta
from amn_mpi.params import Group

DRAW = np.random.default_rng(6)
L, N, K, TAU = 2, 5, 16, 4.0
GROUPS = (Group("fc1", 0, 36), Group("fc2", 36, 57))
SLICES = [slice(0, 36), slice(36, 57)]
MODELS = DRAW.normal(size=(N, 57))
SKETCHES = DRAW.normal(size=(N, L, K)) + 3
SAMPLES = np.array([30.0, 11, 50, 24, 17])
ALL = np.ones(N, bool)
SOME = np.array([True, False, True, True, False])
ONE = np.array([False, False, True, False, False])
NUMBERS = plain.Meta(np.array([[0.3, -0.8], [1.1, 0.2]]), np.array([-0.4, 0.9]))


def network(numbers: plain.Meta = NUMBERS, tau: float = TAU) -> meta.MetaNetwork:
    made = meta.MetaNetwork(L, tau, 0.5).double()
    with torch.no_grad():
        made.evidence.copy_(torch.from_numpy(numbers.evidence))
        made.gate.copy_(torch.from_numpy(numbers.gate))
    return made


def allowed(seen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(seen[:, None] & seen[None] & ~np.eye(len(seen), dtype=bool))


def outputs(seen: np.ndarray, sketches: np.ndarray = SKETCHES, samples: np.ndarray = SAMPLES):
    """(similarity, attention, mixing) of the package, in float64."""
    seen_ = torch.from_numpy(seen)
    s = meta.similarities(torch.from_numpy(sketches), seen_)
    queries = torch.arange(len(seen))
    common = meta.leave_one_out(torch.from_numpy(samples), seen_, queries)
    made = network()
    a, w = made.attention(s, allowed(seen)), made(s, allowed(seen), common)
    return s, a.detach(), w.detach()


# ---- sketch


def products(g: np.ndarray) -> torch.Tensor:
    """g_i^l . theta_j^l, (L, n, N)."""
    return torch.from_numpy(np.stack([g[:, columns] @ MODELS[:, columns].T for columns in SLICES]))


@pytest.mark.parametrize("k", [1, 16, 20, 36, 100])
def test_sketch_equals_the_loop(k: int) -> None:
    made = meta.Sketch(GROUPS, k, 1)
    assert set(made.signs.tolist()) == {-1, 1}
    row = MODELS[0].astype(np.float32)
    expected = plain.sketch(row.astype(float), made.signs.double().numpy(), SLICES, k)
    np.testing.assert_allclose(made(torch.from_numpy(row)), expected, atol=1e-5)


def test_sketch_is_linear_and_repeats() -> None:
    made = meta.Sketch(GROUPS, 16, 1)
    a, b = torch.from_numpy(MODELS[:2].astype(np.float32))
    assert torch.allclose(made(2 * a - 3 * b), 2 * made(a) - 3 * made(b), atol=1e-5)
    assert torch.equal(meta.Sketch(GROUPS, 16, 1)(a), made(a))
    assert not torch.allclose(meta.Sketch(GROUPS, 16, 2)(a), made(a))


@pytest.mark.parametrize("k", [36, 50])
def test_inner_products_are_exact_in_small_groups(k: int) -> None:
    made = meta.Sketch(GROUPS, k, 1)
    a, b = torch.from_numpy(MODELS[:2].astype(np.float32))
    for layer, group in enumerate(SLICES):
        assert float(made(a)[layer] @ made(b)[layer]) == pytest.approx(float(a[group] @ b[group]), rel=1e-4)


def test_inner_products_are_kept_in_expectation() -> None:
    # All coordinates have one sign: without random signs the mean would be 50 times as large.
    p, k, seeds = 400, 8, 1500
    x, y = (torch.from_numpy(1 + 0.3 * DRAW.normal(size=p)).float() for _ in range(2))
    right = float(x @ y)
    group = (Group("a", 0, p),)
    found = [float(s(x)[0] @ s(y)[0]) for s in (meta.Sketch(group, k, seed) for seed in range(seeds))]
    spread = np.sqrt(2 * float(x @ x) * float(y @ y) / k / seeds)  # of the mean of so many
    assert abs(np.mean(found) - right) < 5 * spread < 0.1 * right


# ---- similarity


@pytest.mark.parametrize("seen", [ALL, SOME, ONE])
def test_cosines_of_centred_sketches(seen: np.ndarray) -> None:
    s = outputs(seen)[0]
    np.testing.assert_allclose(s, plain.cosines(SKETCHES, seen), atol=1e-12)
    assert s.isfinite().all() and not s[:, ~torch.from_numpy(seen)].any()


def test_a_shift_of_all_models_changes_no_similarity() -> None:
    far = outputs(ALL, SKETCHES + 100 * DRAW.normal(size=(1, L, K)))[0]
    np.testing.assert_allclose(far, outputs(ALL)[0], atol=1e-9)
    assert float(far[0, 0, 1]) < 0.9  # and they are not all near 1


def test_float32_keeps_what_differs_beside_what_is_common() -> None:
    """The cnn's parameters; models that differ from their start by a thousandth, in two groups."""
    size, k = 582_026, 512
    groups = (Group("conv", 0, 832), Group("fc", 832, size - 5130), Group("out", size - 5130, size))
    draw = np.random.default_rng(3)
    start, shared = draw.normal(0, 0.05, size), draw.normal(0, 4e-5, (2, size))
    models = start + shared[np.arange(6) % 2] + draw.normal(0, 3e-5, (6, size))
    models = models.astype(np.float32)
    made = meta.Sketch(groups, k, 1)
    found = meta.similarities(torch.stack([made(m) for m in torch.from_numpy(models)]), torch.ones(6) > 0)
    signed = (models.astype(np.float64) - start) * made.signs.numpy()
    exact = np.zeros((6, 3, k))
    for layer, group in enumerate(groups):
        piece = signed[:, group.start : group.stop]
        piece = np.pad(piece, ((0, 0), (0, -group.size % k)))
        exact[:, layer] = piece.reshape(6, -1, k).sum(1)
    expected = plain.cosines(exact, np.ones(6, bool))
    assert abs(found.numpy() - expected).max() < 1e-3
    assert 0.2 < expected[1, 0, 2] < 0.9 and expected[1, 0, 1] < -0.2


def test_unseen_clients_do_not_move_the_centre() -> None:
    other = np.where(SOME[:, None, None], SKETCHES, 77.0)
    assert torch.equal(outputs(SOME, other)[0], outputs(SOME)[0])


# ---- attention and hybrids


@pytest.mark.parametrize("seen", [ALL, SOME, ONE])
def test_attention_and_mixing_equal_numpy(seen: np.ndarray) -> None:
    s, a, w = outputs(seen)
    for i in range(N):
        np.testing.assert_allclose(a[:, i], plain.attention(NUMBERS, TAU, s.numpy(), i, seen), atol=1e-12)
        expected = plain.mixing(NUMBERS, TAU, s.numpy(), SAMPLES, seen, i)
        np.testing.assert_allclose(w[:, i], expected, atol=1e-12)


@pytest.mark.parametrize("seen", [ALL, SOME, ONE, np.array([True, True, False, False, False])])
def test_rows_sum_to_one_and_leave_out_oneself_and_the_unseen(seen: np.ndarray) -> None:
    _, a, w = (t.numpy() for t in outputs(seen))
    for i in range(N):
        someone = seen[i] and seen.sum() > 1
        np.testing.assert_allclose(a[:, i].sum(1), float(someone), atol=1e-12)
        assert not a[:, i, i].any() and not a[:, i, ~seen].any()
        np.testing.assert_allclose(w[:, i].sum(1), 1, atol=1e-12)
        if seen.sum() > 1:
            assert not w[:, i, i].any() and not w[:, i, ~seen].any()
    assert np.isfinite(w).all() and (a >= 0).all()


def test_alone_one_keeps_the_own_model() -> None:
    assert outputs(ONE)[2][:, 2].tolist() == [ONE.astype(float).tolist()] * L


def test_permuted_clients_permute_the_result() -> None:
    order = np.array([3, 0, 4, 1, 2])
    for there, here in zip(outputs(SOME[order], SKETCHES[order], SAMPLES[order]), outputs(SOME)):
        expected = here[:, order][:, :, order]
        np.testing.assert_allclose(there, expected, atol=1e-12)


def test_equal_clients_get_equal_weights() -> None:
    sketches, samples = SKETCHES.copy(), SAMPLES.copy()
    sketches[3], samples[3] = sketches[1], samples[1]
    _, a, w = outputs(ALL, sketches, samples)
    for t in (a, w):
        np.testing.assert_allclose(t[:, [0, 2, 4], 3], t[:, [0, 2, 4], 1], atol=1e-14)
        np.testing.assert_allclose(t[:, 1, 3], t[:, 3, 1], atol=1e-14)


def test_all_equal_clients_get_the_plain_mean_of_the_others() -> None:
    same = np.repeat(SKETCHES[:1], N, 0)
    a = outputs(ALL, same)[1].numpy()
    np.testing.assert_allclose(a, np.broadcast_to((1 - np.eye(N)) / (N - 1), a.shape), atol=1e-12)


def test_start_of_the_network() -> None:
    made = meta.MetaNetwork(3, 8.0, 0.2)
    np.testing.assert_allclose(made.gates().detach(), 0.2, rtol=1e-6)
    np.testing.assert_allclose(made.omega().detach(), 1 / 3, rtol=1e-6)
    assert sum(p.numel() for p in made.parameters()) == 12


def test_attention_by_hand() -> None:
    # one layer, three clients; e = tau s: client 0 sees e_01 = log 3, e_02 = 0
    s = torch.zeros(1, 3, 3, dtype=torch.float64)
    s[0, 0, 1] = np.log(3) / 2
    made = meta.MetaNetwork(1, 2.0, 0.25).double()
    a = made.attention(s, ~torch.eye(3, dtype=torch.bool))
    np.testing.assert_allclose(a[0].detach(), [[0, 0.75, 0.25], [0.5, 0, 0.5], [0.5, 0.5, 0]], atol=1e-12)
    common = meta.leave_one_out(
        torch.tensor([1.0, 1, 4]).double(), torch.ones(3, dtype=torch.bool), torch.arange(3)
    )
    np.testing.assert_allclose(common, [[0, 0.2, 0.8], [0.2, 0, 0.8], [0.5, 0.5, 0]])
    w = made(s, ~torch.eye(3, dtype=torch.bool), common)
    np.testing.assert_allclose(w[0, 0].detach(), [0, 0.25 * 0.75 + 0.75 * 0.2, 0.25 * 0.25 + 0.75 * 0.8])


def test_evidence_crosses_layers() -> None:
    # layer 1 knows the pair (0, 1), layer 0 knows nothing; omega_01 = 1 lets layer 0 listen to it
    s = torch.zeros(2, 3, 3, dtype=torch.float64)
    s[1, 0, 1] = 1.0
    made = network(plain.Meta(np.array([[-40.0, 40.0], [40.0, -40.0]]), np.zeros(2)))
    a = made.attention(s, ~torch.eye(3, dtype=torch.bool)).detach()
    assert float(a[0, 0, 1]) == pytest.approx(np.exp(TAU) / (np.exp(TAU) + 1))
    assert float(a[1, 0, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("width", [1, 7, 36, 100])
def test_blocks_are_all_columns_layer_by_layer(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", width)
    found = blocks.cut(GROUPS)
    assert [c for block in found for c in range(block.start, block.stop)] == list(range(57))
    for block in found:
        group = SLICES[block.layer]
        assert group.start <= block.start < block.stop <= group.stop and block.size <= width


@pytest.mark.parametrize("layers", [1, L])
def test_mix_layer_by_layer(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    w = DRAW.normal(size=(layers, 3, N))
    for block in blocks.cut(GROUPS):
        out = blocks.mix(torch.from_numpy(w), torch.from_numpy(MODELS[:, block.columns]), block)
        for i in range(3):
            weights = w[block.layer if layers > 1 else 0, i]
            np.testing.assert_allclose(out[i], weights @ MODELS[:, block.columns], atol=1e-12)


# ---- the gradient


def data(i: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(i)
    return draw.normal(size=(9, plain.FEATURES)), draw.integers(0, plain.CLASSES, 9)


def hybrids(numbers: plain.Meta, s: np.ndarray, seen: np.ndarray, clients: list[int]) -> np.ndarray:
    rows = [plain.mixing(numbers, TAU, s, SAMPLES, seen, i) for i in clients]
    pieces = [np.array([w[layer] @ MODELS[:, g] for w in rows]) for layer, g in enumerate(SLICES)]
    return np.concatenate(pieces, 1)


@pytest.mark.parametrize(
    ("seen", "clients"),
    [
        (ALL, [0, 1, 2, 3, 4]),
        (ALL, [1, 3, 4]),
        (SOME, [0, 2, 3]),
        (SOME, [1, 2, 4]),
        (ONE, [2, 3]),
    ],
)
def test_gradient_agrees_with_differences_through_hybrid_and_loss(
    seen: np.ndarray, clients: list[int]
) -> None:
    s = plain.cosines(SKETCHES, seen)
    p = SAMPLES[clients] / SAMPLES[clients].sum()

    def pooled(vector: np.ndarray) -> float:
        """sum_i p_i L_i(w_i(meta)), L_i the true held-out loss of an mlp."""
        numbers = plain.Meta(vector[:4].reshape(2, 2), vector[4:])
        w = hybrids(numbers, s, seen, clients)
        return sum(p[k] * plain.mlp(w[k], *data(i))[0] for k, i in enumerate(clients))

    at = np.concatenate([NUMBERS.evidence.ravel(), NUMBERS.gate])
    steps = 1e-5 * np.eye(6)
    numeric = np.array([(pooled(at + h) - pooled(at - h)) / 2e-5 for h in steps])

    w = hybrids(NUMBERS, s, seen, clients)
    g = np.array([plain.mlp(w[k], *data(i))[1] for k, i in enumerate(clients)])
    made, seen_, queries = network(), torch.from_numpy(seen), torch.tensor(clients)
    common = meta.leave_one_out(torch.from_numpy(SAMPLES), seen_, queries)
    mixing = made(torch.from_numpy(s)[:, queries], allowed(seen)[queries], common)
    inner = products(g)
    meta.surrogate(mixing, inner, torch.from_numpy(p)).backward()
    found = torch.cat([made.evidence.grad.flatten(), made.gate.grad]).numpy()
    np.testing.assert_allclose(found, numeric, atol=1e-8, rtol=1e-5)
    assert (abs(found).max() > 1e-3) == (seen.sum() > 1)

    by_hand = np.zeros(6)
    for k, i in enumerate(clients):
        parts = plain.meta_gradient(NUMBERS, TAU, s, SAMPLES, seen, i, inner[:, k].numpy())
        by_hand += p[k] * np.concatenate([part.ravel() for part in parts])
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_adam_by_hand_and_over_steps() -> None:
    # first step: mean g, scale |g|: every number moves by lr against its sign; 0 stays
    at, moments = torch.tensor([1.0, 1.0, 1.0]), torch.zeros(2, 3)
    meta.adam(at, torch.tensor([3.0, -1e-4, 0.0]), moments, 1, 0.1)
    np.testing.assert_allclose(at, [0.9, 1.1, 1.0], rtol=1e-5)
    m = v = np.zeros(4)
    here, theirs = np.ones(4), torch.ones(4, dtype=torch.float64)
    moments = torch.zeros(2, 4, dtype=torch.float64)
    for step in range(1, 12):
        g = DRAW.normal(size=4)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        here = here - 0.05 * (m / (1 - 0.9**step)) / np.sqrt(v / (1 - 0.99**step))
        meta.adam(theirs, torch.from_numpy(g), moments, step, 0.05)
    np.testing.assert_allclose(theirs, here, rtol=1e-9)
