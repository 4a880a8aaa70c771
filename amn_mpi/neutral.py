"""What a digest leaves out: see ``amn_mpi/digest.py``. Pure.

An entry is the key's default when digests began, or, for a key that came later, the value with which runs
are what they were without it (mostly its default). Entries are added and never changed: a default that
changes then counts as another configuration by itself, and whoever gave the new value before keeps the run.
"""

from __future__ import annotations

from typing import Any

NEUTRAL: dict[str, Any] = {
    **{"rounds": 40, "cohort": 1.0, "baselines": "", "precision": "fp32"},
    **{"server": "rank0", "server_gb": 4.0},
    **{"data.name": "digits", "data.split": "balanced", "data.clients": 32},
    **{"data.train_per_client": 0, "data.test_per_client": 0, "data.test_fraction": 0.25},
    **{"data.validation": 0.0, "data.unseen": 0.0, "data.min_samples": 10},
    **{"data.labels": "dirichlet", "data.alpha": 0.5, "data.classes_per_client": 3, "data.label_groups": 4},
    **{"data.sizes": "equal", "data.sigma": 1.0, "data.concept": "permute", "data.concept_groups": 2},
    **{"model.name": "mlp", "model.hidden": 64, "model.vocabulary": 20_000, "model.embedding": 64},
    **{"local.epochs": 5, "local.steps": 0, "local.batch_size": 10},
    **{"local.lr": 0.05, "local.momentum": 0.0, "local.weight_decay": 0.0},
    **{"evaluate.every": 1, "evaluate.batch_size": 1000},
}

# Under method.; a method's name itself is never left out.
METHODS: dict[str, dict[str, Any]] = {
    "amn": {
        **{"tau": 8.0, "sketch": 512, "gate": 0.1, "evidence_lr": 30.0, "gate_lr": 0.5, "price": 0.3},
        **{"common_rounds": 5, "meta_rounds": 30, "held_out": 0.125, "soften": 3.0},
        **{"fit": 1, "prior": 1.0, "report": "fitted", "recall": 0.8, "drift": 0.0},
    },
    "local": {},
    "fedavg": {"prior": 0.0},
    "fedavg_ft": {"head": 0, "epochs": 0, "prior": 0.0},
    "fedprox": {"mu": 0.1},
    "scaffold": {"global_lr": 1.0},
    "per_fedavg": {"hessian": "first_order", "alpha": 0.01, "delta": 0.001, "adapt_steps": 1},
    "pfedme": {"lam": 15.0, "inner_steps": 5, "inner_lr": 0.09, "beta": 1.0},
    "ditto": {"lam": 0.1, "personal_epochs": 0},
    "apfl": {"alpha": 0.5, "adaptive": True},
    "fedper": {"head": 1},
    "fedrep": {"head": 1, "head_epochs": 10, "body_epochs": 0, "fit": False},
    "lg_fedavg": {"head": 1},
    "fedbn": {},
    "fedamp": {"lam": 1.0, "alpha": 1.0, "sigma": 25.0, "start": "own"},
    "heur_fedamp": {"lam": 1.0, "alpha": 1.0, "sigma": 25.0, "self_weight": 0.1, "start": "own"},
    "fedfomo": {"models": 5, "validation": 0.2, "epsilon": 0.3, "epsilon_decay": 0.05},
    "pfedhn": {
        **{"embedding": 0, "hidden": 100, "layers": 3},
        **{"server_lr": 0.1, "server_momentum": 0.9, "server_decay": 0.001, "clip": 50.0},
    },
    "fedala": {"eta": 1.0, "samples": 0.8, "head": 1},
    "ifca": {"groups": 4},
}

# How often a method's results have changed with no key of it; "" counts for all methods.
REVISED: dict[str, int] = {"amn": 3}
