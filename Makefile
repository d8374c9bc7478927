# The commands of this project. Each is a few lines that can also be typed by hand.

PYTHON ?= python3
VENV ?= .venv
# The run directory of `make demo`, and further settings for it: make demo RUN=runs/no_focus ARGS="loss.gamma=0"
RUN ?= runs/demo
ARGS ?=
# Test processes: auto is one per core.
WORKERS ?= auto
PYTEST := -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test slow torture lint format size wheel clean

help: ## list these commands
	@echo "Usage: make COMMAND [PYTHON=python3.12] [VENV=folder]"
	@echo
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## train and evaluate on the built-in data set, on any machine
	$(BIN)/python train.py output_dir=$(RUN) $(ARGS)
	$(BIN)/python eval.py checkpoint=$(RUN)/checkpoints/best.pt
	@echo
	@echo "Report        $(RUN)/eval/report.html      open it in a browser"
	@echo "Plots         $(RUN)/plots/        curves, PR curves, detections beside ground truth"
	@echo "Numbers       $(RUN)/eval/metrics.json   $(RUN)/metrics.jsonl"
	@echo "TensorBoard   $(BIN)/tensorboard --logdir runs"
	@echo
	@echo "Try next"
	@echo "  $(BIN)/python train.py --help                     every setting, with its value"
	@echo "  $(BIN)/python train.py loss.gamma=0               no focusing: weighted cross entropy"
	@echo "  $(BIN)/python train.py model.prior=0.5            no prior: watch the first class loss"
	@echo "  $(BIN)/python train.py -m loss.gamma=0,0.5,1,2,5  table 1b of the paper on this data"
	@echo "  $(BIN)/python -m scripts.analyze $(RUN)           errors by kind"
	@echo "  $(BIN)/python -m scripts.predict $(RUN)/checkpoints/best.pt IMAGES"

test: $(VENV)/.installed-dev ## run the test suite
	$(BIN)/python $(PYTEST) -m "not slow and not gpu" $(ARGS)

slow: $(VENV)/.installed-dev ## run the tests that take over ten seconds each
	$(BIN)/python $(PYTEST) -m "slow and not gpu" $(ARGS)

torture: $(VENV)/.installed-dev ## the tests of docs/reliability.md at full length, 40 minutes
	$(BIN)/python -m pytest -m "not gpu" --long tests/reliability $(ARGS)

lint: $(VENV)/.installed-dev ## check style and spelling, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(VENV)/.installed-dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

size: ## lines of the detector, the package, the scripts and the tests
	@awk -F'|' '/^\| \[/ { n += $$3 } END { printf "%-10s %6d\n", "detector", n }' retinanet/README.md
	@for folder in retinanet scripts tests; do \
		printf "%-10s %6d\n" $$folder "$$(find $$folder -name '*.py' -exec cat {} + | wc -l)"; done

wheel: $(VENV)/.installed ## build an installable package in dist/
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove caches and builds; runs, data and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +

install: $(VENV)/.installed ## make the virtual environment with the requirements of training
install-dev: $(VENV)/.installed-dev ## the same with those of tests and linters

# Stamps of finished installations, newer than the requirements they were made from.
$(VENV)/.installed: requirements.txt | $(VENV)/.made
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

$(VENV)/.made:
	@command -v "$(PYTHON)" > /dev/null || { echo "No $(PYTHON) on this machine. Install Python 3.11 to 3.14, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else "$(PYTHON) is Python %d.%d; this project needs 3.11 to 3.14. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@
