# make run    set up .venv once, then AMN over 33 MPI ranks on the embedded digits
# make test   the same set-up, then the tests
# make bench  the same set-up, then steps and rounds beside plain PyTorch, messages, server, start, cost model
#             (ARGS=--quick: in short, without the cost model); JSON and table.md, all ratios, go to BENCH
# Variables: RANKS, ARGS (appended to the command line), BENCH, PYTHON (to make .venv with), EXTRAS.

PYTHON ?= python3
RANKS ?= 33
ARGS ?=
BENCH ?= build/bench
EXTRAS ?= mpich,report,tensorboard,wandb,dev
# The CPU build of torch is a tenth of the default one's size; where this index is out of reach,
# the usual index serves. Set it empty to skip it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PARTS := steps rounds exchange server startup $(if $(findstring --quick,$(ARGS)),,cost_model)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: venv run test lint bench clean

venv: .venv/.installed

# The compiled engine needs a C compiler; where the machine has none, one comes as a wheel.
.venv/.installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard amn_mpi/native/*.c)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || test -z "$(TORCH_INDEX)" || \
	    $(PIP) install --quiet --no-deps --retries 0 --timeout 15 --index-url $(TORCH_INDEX) \
	    "$$(grep '^torch==' constraints.txt)" 2>/dev/null || true
	$(PIP) install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	{ command -v cc || command -v gcc || command -v clang; } >/dev/null || $(PIP) install --quiet -c constraints.txt ziglang
	$(BIN)/python -m amn_mpi.native
	touch $@

run: .venv/.installed
	@$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m amn_mpi.main --config default \
	    --baselines local,fedavg_ft $(ARGS)

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(BIN)/python -m pytest -m alone

lint: .venv/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# The table is written of what went well, whatever else failed.
bench: .venv/.installed
	@failed=; for name in $(PARTS); do \
	    echo "## $$name" && rm -f $(BENCH)/$$name.json && began=$$(date +%s); \
	    $(BIN)/python benchmarks/$$name.py --out $(BENCH)/$$name.json $(ARGS) || failed="$$failed $$name"; \
	    echo "($$(($$(date +%s) - began)) s)"; echo; done; \
	$(BIN)/python benchmarks/summary.py $(BENCH) || failed="$$failed summary"; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache amn_mpi/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
