# Two commands: `make serve` and `make test`. Everything that they need is made by them.
# The clients under test live in an environment of their own, `make test-clients`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := tests/clients
CLIENTS_VENV := .venv-clients
CLIENTS_BIN := $(abspath $(CLIENTS_VENV)/bin)
CLIENTS_STAMP := $(CLIENTS_VENV)/.installed

.PHONY: serve test check unit e2e bench soak test-clients clean

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

test-clients: $(STAMP) $(CLIENTS_STAMP)
	DIPTYCH=$(abspath $(BIN)/diptych) $(CLIENTS_BIN)/python -m pytest -q -c $(CLIENTS)/pytest.ini $(CLIENTS)

# uv resolves these at once; pip tries hundreds of boto3 against hundreds of awscli.
$(CLIENTS_STAMP): $(CLIENTS)/requirements.txt $(CLIENTS)/js/package.json
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(abspath $(CLIENTS_VENV)) $(CLIENTS_BIN)/uv pip install --requirement $(CLIENTS)/requirements.txt
	$(CLIENTS_BIN)/python $(CLIENTS)/install_js.py
	@touch $@

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
	rm -rf $(VENV) $(CLIENTS_VENV) $(CLIENTS)/js/node_modules build dist
