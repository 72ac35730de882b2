# Two commands need nothing but git, make and CPython 3.11-3.13: `make demo` and `make test`.
# The environment is .venv: exactly the versions of requirements.lock, every file checked against its hash.

RUN := .venv/bin/python
UV := .venv/uv/bin/uv
STAMP := .venv/.installed
COMPILE := $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet

# Idle OpenMP threads sleep instead of spinning: where cores are shared, spinning costs up to 6x.
export OMP_WAIT_POLICY := PASSIVE
export PRE_COMMIT_HOME := $(CURDIR)/.venv/pre-commit

# Options: make demo ARGS="seed=2", make test ARGS=-x, make lock ARGS=--upgrade
ARGS ?=
# Runs whose records make board collects; none: those of docs/board/.
RUNS ?=
# Processes that share the tests; each wants a core and 2 GB.
WORKERS ?= 2
# streaming.py wants others installed apart, and says how.
BENCHMARKS ?= $(filter-out %/gpu.py %/side_by_side.py %/speedrun.py %/streaming.py,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check audit format hooks bench speedrun gpu docs board claims numerics lock clean

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Create .venv with the pinned dependencies (PYTHON=... chooses the interpreter)

$(STAMP): requirements.lock requirements-uv.lock tools/install.sh
	@sh tools/install.sh "$(PYTHON)"
	@touch $@

demo: $(STAMP)  ## Train a GAN on real handwritten digits (about two minutes) and show where the samples lie
	$(RUN) src/train.py experiment=gan_digits $(ARGS)
	@echo "What to expect: the grid shows 80 handwritten digits of 8x8 pixels, about half of them readable at a glance; val/fd_classifier, the"
	@echo "distance to the training images, fell from about 57 to about 2; in the curves D(x) and D(G(z)) approach each other."

test: $(STAMP)  ## Run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-all: $(STAMP)  ## Run the tests, also those that take minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(ARGS)

check: $(STAMP)  ## Run every pre-commit hook: linter, formatter, type checker, file hygiene
	.venv/bin/pre-commit run --all-files --show-diff-on-failure

audit:  ## Ask osv.dev for known vulnerabilities of the locked versions; offline, say that nothing was checked
	@$(or $(wildcard $(RUN)),python3) tools/audit.py

format: $(STAMP)  ## Repair what the linter and the formatter can repair
	-.venv/bin/ruff check --fix --quiet
	.venv/bin/ruff format

hooks: $(STAMP)  ## Let git run the checks before every commit
	.venv/bin/pre-commit install

bench: $(STAMP) .venv/peers  ## Time ours against the others, side by side; writes benchmarks/results/
	@for script in $(BENCHMARKS); do PYTHONPATH=.venv/peers $(RUN) $$script || exit 1; done

speedrun: $(STAMP) $(if $(filter --plan --report -h --help,$(ARGS)),,.venv/peers)  ## Records on MNIST for processor time: hours; goes on where it stopped (ARGS=--plan, fvbn, ...)
	PYTHONPATH=.venv/peers $(RUN) benchmarks/speedrun.py $(ARGS)

gpu: $(STAMP)  ## Run and measure all that wants a GPU, in parts; goes on where it stopped (ARGS=--plan, --rehearse, ...)
	$(RUN) benchmarks/gpu.py $(ARGS)

.venv/peers: requirements-bench.lock $(STAMP)
	rm -rf $@
	$(UV) pip install --quiet --python $(RUN) --target $@ --no-deps --require-hashes -r requirements-bench.lock
	@touch $@

docs: $(STAMP) .venv/docs  ## Build the documentation as a site, build/site/index.html, and check its links
	PYTHONPATH=.venv/docs $(RUN) tools/docs.py

.venv/docs: requirements-docs.lock $(STAMP)
	rm -rf $@
	$(UV) pip install --quiet --python $(RUN) --target $@ --no-deps --require-hashes -r requirements-docs.lock
	@touch $@

board: $(STAMP)  ## Write the board of README.md and docs/board.md anew (RUNS='logs/sweeps/x/*' collects runs first)
	$(RUN) tools/board.py $(RUNS)

claims: $(STAMP)  ## Write the answers of docs/claims-NAME.md anew (NAME=mnist RUNS='logs/sweeps/x/*')
	$(RUN) tools/claims.py $(NAME) $(RUNS)

numerics: $(STAMP)  ## Write what every model computes anew, after a change that was meant to change numbers
	OMP_NUM_THREADS=1 $(RUN) tests/reliability/numerics.py

lock: $(STAMP)  ## Recreate the lock files from pyproject.toml (ARGS=--upgrade moves to the newest versions)
	$(COMPILE) pyproject.toml --extra dev $(ARGS) -o requirements.lock
	$(COMPILE) --group installer --no-deps $(ARGS) -o requirements-uv.lock
	$(COMPILE) --group bench --no-deps $(ARGS) -o requirements-bench.lock
	$(COMPILE) --group docs $(ARGS) -o requirements-docs.lock

clean:  ## Remove .venv and all caches; logs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
