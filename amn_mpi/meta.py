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

import torch
from torch import nn

from amn_mpi.params import Group


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


def similarities(sketches: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Cosines s_ij^l of centred sketches.

    Centring matters: all models start from one initialisation, and without it every cosine is
    near 1. It takes away whatever is common to all sketches.

    Args:
        sketches: (N, L, k), of every client's latest model.
        seen: (N,) bool; clients that never trained count neither as rows nor in the centre.

    Returns:
        (L, N, N), zero where either client is unseen.
    """
    features = _features(sketches, sketches, seen) * seen[:, None]
    return features @ features.transpose(1, 2)


def similarities_to(sketches: torch.Tensor, known: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Cosines of newcomers' sketches, (n, L, k), and those of the trained clients, (N, L, k): (L, n, N).

    Centred by the trained clients alone: what a newcomer gets does not depend on who comes with it.
    """
    trained = _features(known, known, seen) * seen[:, None]
    return _features(sketches, known, seen) @ trained.transpose(1, 2)


def _features(sketches: torch.Tensor, known: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Sketches without the mean of those seen, of length 1: (L, n, k)."""
    centred = sketches - known[seen].sum(0) / max(1, int(seen.sum()))
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


class MetaNetwork(nn.Module):
    """One shared network that provides every client's meta-model.

    Layer 1, personality: e_ij^l = tau * sum_m omega_lm s_ij^m, a_ij^l = softmax over j != i.
    Layer 2, commonality: hybrid weight of j in layer l = b^l a_ij^l + (1 - b^l) c_ij.

    Learned: the evidence omega (rows on the simplex: which layers to believe) and the gates b:
    L^2 + L numbers. Query and key matrices are held at the identity and tau is fixed: learned
    freely, they sharpen attention to two neighbours and lose accuracy.
    """

    def __init__(self, layers: int, tau: float, gate: float) -> None:
        super().__init__()
        self.tau = tau
        self.evidence = nn.Parameter(torch.zeros(layers, layers))
        self.gate = nn.Parameter(torch.full((layers,), math.log(gate / (1 - gate))))

    def omega(self) -> torch.Tensor:
        """Evidence weights, (L, L), rows sum to 1."""
        return torch.softmax(self.evidence, dim=1)

    def gates(self) -> torch.Tensor:
        """Share of the personal part, (L,)."""
        return torch.sigmoid(self.gate)

    def attention(self, similarity: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Attention a_ij^l.

        Args:
            similarity: (L, n, N) of the clients asked for to all clients.
            allowed: (n, N) bool: seen, and not the client itself.

        Returns:
            (L, n, N); rows sum to 1, or are 0 where nobody is allowed.
        """
        logits = self.tau * torch.einsum("lm,mij->lij", self.omega(), similarity)
        logits = logits.masked_fill(~allowed, -torch.inf)
        some = allowed.any(1)[None, :, None]
        return torch.softmax(logits.masked_fill(~some, 0.0), dim=2) * some

    def forward(self, similarity: torch.Tensor, allowed: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
        """Mixing weights of the hybrid models, (L, n, N): w_i^l = sum_j mixing_ij^l theta_j^l."""
        attention = self.attention(similarity, allowed)
        gate = self.gates()[:, None, None] * allowed.any(1)[None, :, None]
        return gate * attention + (1 - gate) * common


def surrogate(mixing: torch.Tensor, inner: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The loss whose derivative by the meta-parameters is the chain rule through the hybrids.

    dL_i/dw_i = g_i, w_i^l = sum_j mixing_ij^l theta_j^l, so L_i is to first order
    sum_l sum_j mixing_ij^l (g_i^l . theta_j^l); autograd does softmax, evidence and gates.

    Args:
        mixing: (L, n, N). inner: (L, n, N), the products g_i^l . theta_j^l. weights: (n,), sum to 1.
    """
    return ((mixing * inner).sum((0, 2)) * weights).sum()


def adam(
    parameters: torch.Tensor, gradient: torch.Tensor, moments: torch.Tensor, step: int, lr: float
) -> None:
    """One step of Adam (Kingma and Ba, ICLR 2015, algorithm 1), in place.

    Written out because its state is then one plain (2, size) array beside the others.
    """
    first, second = moments
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    mean = first / (1 - 0.9**step)
    scale = (second / (1 - 0.99**step)).sqrt_().add_(1e-12)
    parameters.sub_(lr * mean / scale)
