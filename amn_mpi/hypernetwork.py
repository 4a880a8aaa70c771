"""pFedHN's network on the server, and the steps it takes (torch at import, so it has a file of its own)."""

from __future__ import annotations

import torch
from torch import nn


class HyperNetwork(nn.Module):
    """Client embeddings, a small MLP, and one linear map to all P parameters of a client's model.

    The authors have a linear head for each of the target's tensors; stacked they are this one, and
    PyTorch's default initialisation, which depends on the inputs only, is the same.
    """

    def __init__(self, clients: int, embedding: int, hidden: int, layers: int, size: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(clients, embedding)
        body: list[nn.Module] = [nn.Linear(embedding, hidden)]
        for _ in range(layers):
            body += [nn.ReLU(), nn.Linear(hidden, hidden)]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(hidden, size)

    def forward(self, clients: torch.Tensor) -> torch.Tensor:
        """(n,) client numbers -> (n, P) models."""
        return self.made(self.embeddings(clients))

    def made(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(..., d) embeddings -> (..., P) models."""
        return self.head(self.body(embeddings))


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
