"""The meta-network against plain numpy: sketch, similarity, attention, hybrids, what it learns."""

from __future__ import annotations

import math

import numpy as np
import plain
import pytest
import torch

from amn_mpi import blocks, meta
from amn_mpi.methods import amn
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
NUMBERS = plain.Meta(np.array([0.3, -0.8]), np.array([-0.4, 0.9]))


def network(numbers: plain.Meta = NUMBERS, tau: float = TAU) -> meta.MetaNetwork:
    return meta.MetaNetwork(torch.from_numpy(np.stack([numbers.v, numbers.z])), tau)


def allowed(seen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(seen[:, None] & seen[None] & ~np.eye(len(seen), dtype=bool))


def outputs(seen: np.ndarray, sketches: np.ndarray = SKETCHES, samples: np.ndarray = SAMPLES):
    """(similarity, attention, mixing) of the package, in float64."""
    seen_ = torch.from_numpy(seen)
    s = meta.similarities(torch.from_numpy(sketches), seen_)
    queries = torch.arange(len(seen))
    common = meta.leave_one_out(torch.from_numpy(samples), seen_, queries)
    made = network()
    a = made.attention(s, allowed(seen))
    return s, a, made.mixing(a, common)


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
        expected = plain.attention(NUMBERS.omega, TAU, s.numpy(), i, seen)
        np.testing.assert_allclose(a[i], expected, atol=1e-12)
        expected = plain.mixing(NUMBERS, TAU, s.numpy(), SAMPLES, seen, i)
        np.testing.assert_allclose(w[:, i], expected, atol=1e-12)


@pytest.mark.parametrize("seen", [ALL, SOME, ONE, np.array([True, True, False, False, False])])
def test_rows_sum_to_one_and_leave_out_oneself_and_the_unseen(seen: np.ndarray) -> None:
    _, a, w = (t.numpy() for t in outputs(seen))
    for i in range(N):
        someone = seen[i] and seen.sum() > 1
        np.testing.assert_allclose(a[i].sum(), float(someone), atol=1e-12)
        assert not a[i, i] and not a[i, ~seen].any()
        np.testing.assert_allclose(w[:, i].sum(1), 1, atol=1e-12)
        if seen.sum() > 1:
            assert not w[:, i, i].any() and not w[:, i, ~seen].any()
    assert np.isfinite(w).all() and (a >= 0).all()


def test_alone_one_keeps_the_own_model() -> None:
    assert outputs(ONE)[2][:, 2].tolist() == [ONE.astype(float).tolist()] * L


def test_permuted_clients_permute_the_result() -> None:
    order = np.array([3, 0, 4, 1, 2])
    for there, here in zip(outputs(SOME[order], SKETCHES[order], SAMPLES[order]), outputs(SOME)):
        expected = here[..., order, :][..., order]
        np.testing.assert_allclose(there, expected, atol=1e-12)


def test_equal_clients_get_equal_weights() -> None:
    sketches, samples = SKETCHES.copy(), SAMPLES.copy()
    sketches[3], samples[3] = sketches[1], samples[1]
    _, a, w = outputs(ALL, sketches, samples)
    for t in (a, w):
        np.testing.assert_allclose(t[..., [0, 2, 4], 3], t[..., [0, 2, 4], 1], atol=1e-14)
        np.testing.assert_allclose(t[..., 1, 3], t[..., 3, 1], atol=1e-14)


def test_all_equal_clients_get_the_plain_mean_of_the_others() -> None:
    same = np.repeat(SKETCHES[:1], N, 0)
    a = outputs(ALL, same)[1].numpy()
    np.testing.assert_allclose(a, (1 - np.eye(N)) / (N - 1), atol=1e-12)


def test_start_of_the_network() -> None:
    start = meta.MetaNetwork.start(3, 0.2)
    made = meta.MetaNetwork(start, 8.0)
    assert start.shape == (2, 3), "2 L numbers are learned"
    np.testing.assert_allclose(made.gates, 0.2, rtol=1e-6)
    np.testing.assert_allclose(made.omega, 1 / 3, rtol=1e-6)


def test_attention_by_hand() -> None:
    # one layer, three clients; e = tau s: client 0 sees e_01 = log 3, e_02 = 0
    s = torch.zeros(1, 3, 3, dtype=torch.float64)
    s[0, 0, 1] = np.log(3) / 2
    made = meta.MetaNetwork(meta.MetaNetwork.start(1, 0.25).double(), 2.0)
    a = made.attention(s, ~torch.eye(3, dtype=torch.bool))
    np.testing.assert_allclose(a, [[0, 0.75, 0.25], [0.5, 0, 0.5], [0.5, 0.5, 0]], atol=1e-12)
    common = meta.leave_one_out(
        torch.tensor([1.0, 1, 4]).double(), torch.ones(3, dtype=torch.bool), torch.arange(3)
    )
    np.testing.assert_allclose(common, [[0, 0.2, 0.8], [0.2, 0, 0.8], [0.5, 0.5, 0]])
    w = made.mixing(a, common)
    expected = [0, 0.25 * 0.75 + 0.75 * 0.2, 0.25 * 0.25 + 0.75 * 0.8]
    np.testing.assert_allclose(w[0, 0], expected, rtol=1e-6)  # the start is made in float32


def test_evidence_is_for_all_layers() -> None:
    """Layer 1 knows the pair (0, 1), layer 0 knows nothing: both are mixed by what layer 1 knows."""
    s = torch.zeros(2, 3, 3, dtype=torch.float64)
    s[1, 0, 1] = 1.0
    others = ~torch.eye(3, dtype=torch.bool)
    heard = {}
    for v in ((-40.0, 40.0), (40.0, -40.0)):
        made = network(plain.Meta(np.array(v), np.full(2, 40.0)))  # gates open
        w = made.mixing(made.attention(s, others), torch.zeros(3, 3).double())
        heard[v] = w[:, 0, 1].tolist()
    assert heard[-40.0, 40.0] == pytest.approx([np.exp(TAU) / (np.exp(TAU) + 1)] * 2)
    assert heard[40.0, -40.0] == pytest.approx([0.5, 0.5])


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


# ---- what held-out gradients say


def data(i: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(i)
    return draw.normal(size=(9, plain.FEATURES)), draw.integers(0, plain.CLASSES, 9)


def hybrids(
    omega: np.ndarray, b: np.ndarray, s: np.ndarray, seen: np.ndarray, clients: list[int]
) -> np.ndarray:
    """w_i of the equations, (n, P), for gates ``b`` that may be 1."""
    found = np.zeros((len(clients), 57))
    for row, i in zip(found, clients):
        a, c = plain.attention(omega, TAU, s, i, seen), plain.common(SAMPLES, seen, i)
        for layer, g in enumerate(SLICES):
            gate = b[layer] if a.any() else 0.0
            row[g] = (gate * a + (1 - gate) * c) @ MODELS[:, g]
    return found


@pytest.mark.parametrize(
    ("seen", "clients"),
    [
        (ALL, [0, 1, 2, 3, 4]),
        (ALL, [1, 3, 4]),
        (SOME, [0, 2, 3]),
        (SOME, [1, 2, 4]),
        (ONE, [2, 3]),
        (ALL, [2]),
    ],
)
@pytest.mark.parametrize("gates", ["open", "as they are"])
def test_lesson_agrees_with_differences_through_hybrid_and_loss(
    seen: np.ndarray, clients: list[int], gates: str
) -> None:
    """dL/d omega with all gates open, and -dL/db at any gates: L the true loss of an mlp at the hybrids."""
    s = plain.cosines(SKETCHES, seen)
    p, omega = SAMPLES[clients] / SAMPLES[clients].sum(), NUMBERS.omega
    b = np.ones(L) if gates == "open" else NUMBERS.gates

    def pooled(omega: np.ndarray, b: np.ndarray) -> float:
        w = hybrids(omega, b, s, seen, clients)
        return sum(p[k] * plain.mlp(w[k], *data(i))[0] for k, i in enumerate(clients))

    steps = 1e-5 * np.eye(L)
    by_omega = [(pooled(omega + h, b) - pooled(omega - h, b)) / 2e-5 for h in steps]
    by_gate = [(pooled(omega, b + h) - pooled(omega, b - h)) / 2e-5 for h in steps]

    w = hybrids(omega, b, s, seen, clients)
    g = np.array([plain.mlp(w[k], *data(i))[1] for k, i in enumerate(clients)])
    found = taught(s, seen, clients, products(g))
    np.testing.assert_allclose(p @ found.saved.numpy(), -np.array(by_gate), atol=1e-8, rtol=1e-5)
    if gates == "open":
        np.testing.assert_allclose(found.slope, by_omega, atol=1e-8, rtol=1e-5)
        assert (abs(found.slope).max() > 1e-3) == (seen.sum() > 1)
    expected = plain.lesson(omega, TAU, s, SAMPLES, seen, clients, products(g).numpy())
    for name in ("slope", "saved"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12, err_msg=name)


def taught(s: np.ndarray, seen: np.ndarray, clients: list[int], inner: torch.Tensor) -> meta.Lesson:
    queries, seen_ = torch.tensor(clients), torch.from_numpy(seen)
    s_ = torch.from_numpy(s)[:, queries]
    common = meta.leave_one_out(torch.from_numpy(SAMPLES), seen_, queries)
    weights = torch.from_numpy(SAMPLES[clients] / SAMPLES[clients].sum())
    attention = network().attention(s_, allowed(seen)[queries])
    return meta.lesson(attention, s_, common, inner, weights, TAU)


def test_what_a_client_saves_by_hand() -> None:
    """Client 0 listens to client 2 alone, client 1 to nobody; all in common is client 1 and 0."""
    attention = torch.tensor([[0.0, 0, 1], [0, 0, 0]]).double()
    common = torch.tensor([[0.0, 1, 0], [1, 0, 0]]).double()
    inner = torch.tensor([[[9.0, 3, 1], [5, 9, 7]], [[9.0, 1, 4], [5, 9, 7]]]).double()
    found = meta.lesson(
        attention, torch.zeros(2, 2, 3).double(), common, inner, torch.ones(2).double() / 2, TAU
    )
    assert found.saved.tolist() == [[3.0 - 1.0, 1.0 - 4.0], [0.0, 0.0]]


# ---- means over the clients


def pooled(each: list[list[float]], weights: list[float]) -> tuple[list[float], list[float]]:
    gain, noise = meta.pooled(torch.tensor(each).double(), torch.tensor(weights).double())
    expected = plain.pooled(np.array(each), np.array(weights))
    np.testing.assert_allclose([gain, noise], expected, atol=1e-12)
    return gain.tolist(), noise.tolist()


def test_gain_and_noise_by_hand() -> None:
    # G = (3 + 1) / 2 = 2, N = sqrt(2 / 1 * (1 + 1) / 4) = 1; and of four equal clients std / sqrt(4)
    assert pooled([[3.0, 0.0], [1.0, 0.0]], [0.5, 0.5]) == ([2.0, 0.0], [pytest.approx(1.0), 0.0])
    each = [0.2, -0.1, 0.4, 0.3]
    (gain,), (noise,) = pooled([[v] for v in each], [0.25] * 4)
    assert (gain, noise) == pytest.approx((0.2, np.std(each, ddof=1) / 2))
    # Unequal weights: G = 0.8 * 1 - 0.2 * 1 = 0.6, N = sqrt(2 (0.64 * 0.16 + 0.04 * 2.56))
    (gain,), (noise,) = pooled([[1.0], [-1.0]], [0.8, 0.2])
    assert (gain, noise) == pytest.approx((0.6, math.sqrt(2 * (0.64 * 0.16 + 0.04 * 2.56))))


def test_one_client_alone_has_no_end_of_noise() -> None:
    """Nor has one beside others that say nothing."""
    for each, weights in (([[3.0, 1.0]], [1.0]), ([[0.0, 0.0], [3.0, 1.0]], [0.0, 1.0])):
        assert pooled(each, weights) == ([3.0, 1.0], [math.inf, math.inf])


def test_who_says_nothing_changes_nothing() -> None:
    two, three = pooled([[3.0], [1.0]], [0.5, 0.5]), pooled([[3.0], [0.0], [1.0]], [0.5, 0.0, 0.5])
    assert two == three == ([2.0], [pytest.approx(1.0)])


# ---- what is learned of it


def learned(v: list[float], slope: list[float], lr: float) -> list[float]:
    """Evidence after a step; the gates stay."""
    logits = torch.tensor([v, [0.3] * len(v)], dtype=torch.float64)
    meta.believe(logits, torch.tensor(slope, dtype=torch.float64), lr)
    assert logits[1].tolist() == [0.3] * len(v)
    return logits[0].tolist()


ZERO = [0.0, 0.0, 0.0]


def test_evidence_takes_a_step_and_the_best_is_zero() -> None:
    # 0 - 10 * 0.1, 1 - 10 * (-0.2), -1 - 0: -1, 3, -1; less the best: -4, 0, -4
    assert learned([0.0, 1.0, -1.0], [0.1, -0.2, 0.0], 10.0) == pytest.approx([-4.0, 0.0, -4.0])


def test_evidence_is_bounded() -> None:
    """No layer falls below e^-5 of the best one, so that it can come back."""
    v = learned(ZERO, [3.0, -2.0, 0.1], 100.0)
    assert v == [-5.0, 0.0, -5.0]
    assert learned(v, [-0.1, 0.0, 0.0], 100.0) == pytest.approx([0.0, -5.0, -5.0])


def test_with_the_step_0_the_evidence_stays() -> None:
    assert learned([0.5, 0.0, -9.0], [3.0, -2.0, 0.1], 0.0) == [0.5, 0.0, -9.0]


# Of 100 parameters the layers have 4, 32 and 64: to the power 1.5, as shares, 0.008, 0.18102 and 0.512.
STEEP = [0.008, 0.32**1.5, 0.512]


def opened(
    z: list[float], gain: list[float], noise: list[float], lr: float = 1.0, price: float = 1.0
) -> list[float]:
    """Gates after a step; the evidence stays."""
    logits = torch.tensor([[0.3] * 3, z], dtype=torch.float64)
    about = [torch.tensor(t, dtype=torch.float64) for t in (gain, noise, [price * share for share in STEEP])]
    meta.open_gates(logits, *about, lr=lr)
    assert logits[0].tolist() == [0.3] * 3
    return logits[1].tolist()


def test_gates_open_by_their_share_of_the_gain() -> None:
    """Of 1 nat the layers save 0.02, 0.58 and 0.4."""
    gain = [0.02, 0.58, 0.4]
    assert opened(ZERO, gain, ZERO) == pytest.approx([g / s - 1 for g, s in zip(gain, STEEP)])
    z = opened(ZERO, gain, ZERO, lr=0.5, price=2.0)
    assert z == pytest.approx(
        [0.5 * (0.02 / 0.016 - 1), 0.5 * (0.29 / STEEP[1] - 1), 0.5 * (0.4 / 1.024 - 1)]
    )
    twice = opened(ZERO, [2 * g for g in gain], ZERO, lr=0.5, price=2.0)
    assert twice == pytest.approx(z), "shares: nats in all play no part"


def test_a_gain_within_its_noise_closes() -> None:
    """needed: the price and the noise, so 0.008 + 0.072, 0.18102 and 0.512 + 0.288."""
    z = opened(ZERO, [0.02, 0.58, 0.4], [0.072, 0.0, 0.288])
    assert z == pytest.approx([0.02 / 0.08 - 1, 0.58 / STEEP[1] - 1, 0.4 / 0.8 - 1])
    assert opened(ZERO, [0.3, 0.3, 0.4], [math.inf] * 3) == [-1.0] * 3


def test_what_is_lost_counts_as_no_gain() -> None:
    """A loss closes by 1 and makes the others' shares no larger: 0.2 of 0.2 nats, not of -0.8."""
    assert opened(ZERO, [0.0, 0.2, -1.0], ZERO) == pytest.approx([-1.0, 3.0, -1.0])
    assert opened(ZERO, [-0.2, -1.0, 0.0], ZERO) == [-1.0] * 3
    assert opened(ZERO, ZERO, ZERO) == [-1.0] * 3


def test_a_gate_moves_by_three_steps_at_most_and_within_bounds() -> None:
    """Far more than what is needed opens by 3 steps; after some rounds gates are 0.99 and 0.01."""
    z = ZERO
    for _round in range(10):
        after = opened(z, [1.0, 0.0, 0.0], ZERO, lr=0.5)
        assert after[0] == pytest.approx(min(4.6, z[0] + 1.5))
        assert after[1:] == pytest.approx([max(-4.6, z[1] - 0.5)] * 2)
        z = after
    assert z == pytest.approx([4.6, -4.6, -4.6])


def test_price_0_opens_whatever_is_above_its_noise() -> None:
    z = opened(ZERO, [0.3, 1e-3, 0.4], [0.1, 0.0, 0.8], price=0.0)
    assert z == pytest.approx([0.3 / 0.1 - 1, 3.0, 0.4 / 0.8 - 1])
    assert opened(ZERO, [0.0, -0.1, 0.0], ZERO, price=0.0) == [-1.0] * 3


def test_with_the_step_0_the_gates_stay() -> None:
    at = [-7.0, 1.0, 0.0]
    assert opened(at, [1.0, 0.0, 0.0], ZERO, lr=0.0) == at


@pytest.mark.parametrize("price", [0.0, 0.6])
def test_a_step_equals_numpy(price: float) -> None:
    """Eight steps with drawn lessons."""
    o = amn.Options(evidence_lr=20.0, gate_lr=0.7, price=price)
    here, v, z = plain.Meta(np.zeros(3), np.full(3, -2.0)), ZERO, [-2.0] * 3
    draw = np.random.default_rng(2)
    for _round in range(8):
        slope, gain, noise = draw.normal(0, 0.05, 3), draw.normal(0.1, 0.1, 3), draw.uniform(0, 0.1, 3)
        here = plain.meta_step(here, slope, gain, noise, [4, 32, 64], o)
        v, z = learned(v, slope.tolist(), 20.0), opened(z, gain.tolist(), noise.tolist(), 0.7, price)
        np.testing.assert_allclose([v, z], [here.v, here.z], atol=1e-12)
    assert z != [-4.6] * 3 and max(z) > -2.0
