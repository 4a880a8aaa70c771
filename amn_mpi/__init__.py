"""Personalised federated learning at HPC scale, over MPI."""

__version__ = "0.1.0"
