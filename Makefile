# A few lines over hatch, which does the work (hatch.toml). Everything is kept in this folder: .venv and .hatch.

PYTHON ?= python3
export HATCH_DATA_DIR := $(CURDIR)/.hatch
HATCH := .venv/bin/hatch

.PHONY: demo test contracts shell check fix clean

demo: $(HATCH)  ## Start the network in one process, ask it one question, stay up until Ctrl-C.
	@$(HATCH) run demo

test: $(HATCH)  ## Install what the tests need, then every check: format, lint, types, imports, tests.
	@$(HATCH) run python tests/prepare.py
	@$(HATCH) run check

contracts:  ## Build and test the contracts (npm brings the toolchain); write the gas snapshot and the artifacts.
	@cd contracts && npm ci --no-audit --no-fund && npm run build && npm run snapshot && npm run artifacts && npm test

shell: $(HATCH)  ## Open a shell with ncn on the PATH.
	@$(HATCH) shell

check: $(HATCH)
	@$(HATCH) run check

fix: $(HATCH)
	@$(HATCH) run fix

clean:  ## Remove what these targets made.
	rm -rf .venv .hatch .ncn

$(HATCH):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "making .venv with hatch"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check 'hatch==1.18.*'
