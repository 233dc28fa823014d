# make demo    meta-train for a minute, then compare the shipped optimizer with tuned baselines
# make test    everything that must hold
# make lint    ruff and pyright
# make bench   throughput of meta-training and cost of an update
# make bench-scale    outer steps per second on 1 and 2 processes and devices, and what a model says of 512
# make compat  the contract tests with the oldest and newest jax, flax and optax, on every Python that is found
# make cluster-test   the batch scripts on a real SLURM, on this machine, five minutes
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

# Two processes: most of the time is compiling, which takes one core.
PYTEST ?= -n 2 --dist loadfile

.PHONY: demo test lint bench bench-scale wheel compat cluster-test
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(STAMP)
	rm -rf runs/demo reports/demo
	$(BIN)/metaopt train digits-quick --dir runs/demo
	$(BIN)/metaopt evaluate small-fc-images --tasks mnist-8-mlp-32,digits-8-conv,quadratic-20 \
	  --steps 500 --seeds 5 --out reports/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q $(PYTEST)

# Environments of its own, some GB in .cache/compat.
compat: $(STAMP)
	$(BIN)/python -m tests.compat

# A cluster for these tests alone, stopped whatever happens.
cluster-test: export SLURM_LOCAL_DIR := $(shell mktemp -u /tmp/metaopt-slurm-XXXXXX)
cluster-test: export SLURM_LOCAL_PORT := 18100
cluster-test: export SLURM_CONF = $(SLURM_LOCAL_DIR)/slurm.conf
cluster-test: $(STAMP)
	slurm/install.sh
	trap 'slurm/local_cluster.sh stop' EXIT; trap 'exit 1' INT TERM; slurm/local_cluster.sh start 4 4 && \
	  $(BIN)/python -m pytest -q -n 4 --dist loadfile tests/slurm

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m tests.bench

bench-scale: $(STAMP)
	$(BIN)/python -m tests.bench.scale

# A wheel, installed far from the tree, must find its own checkpoints.
wheel: $(STAMP)
	rm -rf dist build .cache/wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .cache/wheel dist/*.whl
	cd / && PYTHONPATH=$(CURDIR)/.cache/wheel $(CURDIR)/$(BIN)/python -P $(CURDIR)/tests/check_wheel.py
