"""The attention meta-network: which clients to listen to, layer by layer, and how much.

It knows no MPI and no files. Its inputs are similarities of models, not models: (L, n, N) cosines
of sketches, and for its gradient the inner products of client gradients with client models.

Equations are this project's reading of the abstract of Gao, Wang, Liu, Ma, "Personalized
Federated Learning Method Based on Attention-Enhanced Meta-Learning Network", Journal of Computer
Research and Development 61(1), 2024, doi 10.7544/issn1000-1239.202220922. The paper's own
equations were not at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from amn_mpi.params import Group

# Bounds of the logits: no layer's evidence below e^-5 of the best one's, gates from 0.01 to 0.99.
EVIDENCE, GATE = 5.0, 4.6


class Sketch:
    """Seeded sparse random projection of a flat vector, per layer group, to k numbers each.

    A count sketch: coordinate c of a group goes to bucket c mod k with a random sign. Inner
    products are kept in expectation (the signs are independent), exactly for groups of at most k
    coordinates. One pass over the vector, O(P), and linear, so what all models have in common, such as
    the initial one, needs no subtracting: it adds the same to every sketch, and ``similarities`` takes
    the mean away. Float32 keeps the rest: cosines of models that differ by a thousandth of their
    size are right within 1e-3 (``tests/test_meta.py``).
    """

    def __init__(self, groups: tuple[Group, ...], k: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        size = groups[-1].stop
        self.groups, self.k = groups, k
        # A byte each: a quarter of the model's memory, and a third slower than floats.
        self.signs = torch.randint(0, 2, (size,), generator=draw, dtype=torch.int8).mul_(2).sub_(1)

    def __call__(self, vector: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
        """(P,) -> (L, k).

        Args:
            scratch: (P,), is overwritten; fresh memory of this size can take longer than the sketch.
        """
        out = torch.zeros(len(self.groups), self.k)
        signed = torch.mul(vector, self.signs, out=scratch)
        for row, group in zip(out, self.groups):
            whole = group.stop - group.size % self.k
            torch.sum(signed[group.start : whole].view(-1, self.k), 0, out=row)
            row[: group.stop - whole] += signed[whole : group.stop]
        return out


def similarities(features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Cosines s_ij^l of centred features.

    Centring matters: all models start from one initialisation, and without it every cosine is
    near 1. It takes away whatever is common to all.

    Args:
        features: (N, L, k), every client's sketches, or their means.
        seen: (N,) bool; clients that never trained count neither as rows nor in the centre.

    Returns:
        (L, N, N), zero where either client is unseen.
    """
    unit = _unit(features, _centre(features, seen)) * seen[:, None]
    return unit @ unit.transpose(1, 2)


def similarities_to(
    sketches: torch.Tensor, centre: torch.Tensor, features: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Cosines of newcomers' sketches, (n, L, k), and trained clients' features, (N, L, k): (L, n, N).

    Args:
        centre: (L, k), of the trained clients' sketches. Theirs alone: what a newcomer gets does not
            depend on who comes with it.
    """
    trained = _unit(features, _centre(features, seen)) * seen[:, None]
    return _unit(sketches, centre) @ trained.transpose(1, 2)


def _centre(features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Mean of those seen, (L, k)."""
    return features[seen].sum(0) / max(1, int(seen.sum()))


def _unit(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Without what is common, of length 1: (L, n, k)."""
    centred = features - centre
    return (centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-30)).transpose(0, 1)


def leave_one_out(samples: torch.Tensor, seen: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Weights of the common part, (n, N): p over the seen clients without the client itself.

    A client that is the only one seen has nobody else: its row is its own model.
    """
    weights = (samples * seen).expand(len(queries), -1).clone()
    rows = torch.arange(len(queries))
    weights[rows, queries] = 0
    alone = weights.sum(1) == 0
    weights[rows[alone], queries[alone]] = 1
    return weights / weights.sum(1, keepdim=True)


class MetaNetwork:
    """One shared network that provides every client's meta-model.

    Layer 1, personality: a_ij = softmax over j != i of tau * sum_m omega_m s_ij^m, the same for all layers.
    Layer 2, commonality: hybrid weight of j in layer l = b^l a_ij + (1 - b^l) c_ij.

    Learned: the evidence omega (on the simplex: which layers to believe) and the gates b: 2 L numbers, as
    their logits. Query and key matrices are held at the identity and tau is fixed: learned freely, they
    sharpen attention to two neighbours and lose accuracy. An omega for each layer told groups less well.
    """

    def __init__(self, logits: torch.Tensor, tau: float) -> None:
        """``logits``: (2, L), of evidence and gates; see ``start``."""
        self.logits, self.tau = logits, tau

    @staticmethod
    def start(layers: int, gate: float) -> torch.Tensor:
        """Logits with equal evidence and all gates at ``gate``, (2, L)."""
        return torch.stack([torch.zeros(layers), torch.full((layers,), math.log(gate / (1 - gate)))])

    @property
    def omega(self) -> torch.Tensor:
        """Evidence weights, (L,), sum to 1."""
        return torch.softmax(self.logits[0], dim=0)

    @property
    def gates(self) -> torch.Tensor:
        """Share of the personal part, (L,)."""
        return torch.sigmoid(self.logits[1])

    def attention(self, similarity: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Attention a_ij.

        Args:
            similarity: (L, n, N) of the clients asked for to all clients.
            allowed: (n, N) bool: seen, and not the client itself.

        Returns:
            (n, N); rows sum to 1, or are 0 where nobody is allowed.
        """
        logits = self.tau * torch.einsum("m,mij->ij", self.omega, similarity)
        some = allowed.any(1, keepdim=True)
        logits = logits.masked_fill(~allowed, -torch.inf).masked_fill(~some, 0.0)
        return torch.softmax(logits, dim=1) * some

    def mixing(self, attention: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
        """Mixing weights of the hybrid models, (L, n, N): w_i^l = sum_j mixing_ij^l theta_j^l.

        Args:
            attention: (n, N), as above. common: (n, N), what stands for rows without attention.
        """
        gate = self.gates[:, None, None] * attention.any(1)[None, :, None]
        return gate * attention + (1 - gate) * common


@dataclass(frozen=True)
class Lesson:
    """What the held-out gradients of a cohort say of attention and gates.

    Attributes:
        slope: (L,), derivative of the pooled loss by omega, were all gates open.
        saved: (n, L), nats of its held-out loss that listening to neighbours saves a client in each layer.
    """

    slope: torch.Tensor
    saved: torch.Tensor


def lesson(
    attention: torch.Tensor,
    similarity: torch.Tensor,
    common: torch.Tensor,
    inner: torch.Tensor,
    weights: torch.Tensor,
    tau: float,
) -> Lesson:
    """The chain rule through hybrids and attention: dL_i/dw_i = g_i, to first order.

    Args:
        attention, common: (n, N), with which the hybrids were made. similarity: (L, n, N).
        inner: (L, n, N), the products g_i^l . theta_j^l. weights: (n,), of the clients, sum to 1,
            0 of those that say nothing.
    """
    heard = attention.any(1)
    whole = inner.sum(0)
    by_logit = attention * (whole - (attention * whole).sum(1, keepdim=True))
    slope = tau * torch.einsum("i,ij,mij->m", weights, by_logit, similarity)
    return Lesson(slope, (((common - attention) * inner).sum(2) * heard).T)


def pooled(saved: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of what clients save, (n, L), and its standard error, (L,) each.

    Args:
        weights: (n,), sum to 1, 0 of clients that say nothing. Fewer than two others: no end of noise.
    """
    gain = weights @ saved.clone()  # MKL's products round by where an array lies: here always the same
    n = int(weights.count_nonzero())
    spread = (weights.square() @ (saved - gain).square()).sqrt()
    return gain, spread * math.sqrt(n / (n - 1)) if n > 1 else torch.full_like(gain, torch.inf)


def believe(logits: torch.Tensor, slope: torch.Tensor, lr: float) -> None:
    """A step of the evidence, in place on the network's (2, L) ``logits``.

    Exponentiated gradient (Kivinen and Warmuth, Information and Computation 132, 1997).

    Args:
        slope: (L,), derivative of the loss by the evidence's weights. lr: logits a nat, 0: it stays.
    """
    if not lr:
        return
    evidence = logits[0]
    evidence -= lr * slope
    evidence.sub_(evidence.max().clone()).clamp_(min=-EVIDENCE)


def open_gates(
    logits: torch.Tensor, gain: torch.Tensor, noise: torch.Tensor, prices: torch.Tensor, lr: float
) -> None:
    """A step of the gates, in place on the network's (2, L) ``logits``.

    A layer opens where its gain is above its price and its noise together, else it closes.

    Args:
        gain, noise: (L,), of ``pooled``. prices: (L,), as shares of the gain of all layers.
        lr: logits a round, 0: they stay.
    """
    if not lr:
        return
    gain = gain.clamp_min(0)
    needed = prices * gain.sum() + noise
    gates = logits[1]
    gates += lr * (gain / needed.clamp_min(1e-12) - 1).clamp(-1, 3)
    gates.clamp_(-GATE, GATE)
