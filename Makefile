# `make demo` and `make test` do all the set-up on a fresh machine; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: install demo test slow lint check format bench models arm64 clean

install: $(READY)

# torch, torchvision and timm are resolved together: torch's small CPU wheels do not fit torchvision's.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch and other packages, about 6 GB, some minutes; pip shows them below"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: $(READY)
	$(BIN)/adc-edge demo

# Two workers, because many tests wait for sockets and processes.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The slow tests. Those that measure a time or a rate run alone.
slow: $(READY)
	$(BIN)/python -m pytest -m 'slow and not timed' -n 2 --dist worksteal
	$(BIN)/python -m pytest -m 'slow and timed'

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	mkdir -p out/bench
	for name in codec main_job entropy wire rivals compression int8 refresh shim step_time step_model; do \
		$(BIN)/python benchmarks/$$name.py --json out/bench/$$name.json || exit 1; \
	done

models: $(READY)
	$(BIN)/python benchmarks/models.py --markdown docs/models.md

# Emulate the device side as ARM64 code, with a real trainer on this machine. TRAIN=--train adds a trained trunk.
arm64: $(READY)
	deploy/arm64.sh $(BIN)/python $(TRAIN)

clean:
	rm -rf $(VENV) build dist *.egg-info out runs
