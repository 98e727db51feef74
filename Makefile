# Two commands: `make serve` and `make test`. Everything that they need is made by them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: serve test check unit e2e bench soak clean

serve: $(STAMP)
	@exec $(BIN)/diptych serve

test: $(STAMP) check
	$(BIN)/pytest -q

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/pytest -q -m "not e2e and not soak"

e2e: $(STAMP)
	$(BIN)/pytest -q -m "e2e and not soak"

# for so long; `make soak SOAK_MINUTES=600` for a night
SOAK_MINUTES ?= 60
soak: $(STAMP)
	SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/pytest -q -m soak

bench: $(STAMP)
	$(BIN)/diptych bench pair
	$(BIN)/diptych bench pair --prompt-tokens 2048 --output-tokens 128
	$(BIN)/diptych bench together
	$(BIN)/diptych bench interference

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; or name another: make PYTHON=python3.12 serve"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --progress-bar on --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
