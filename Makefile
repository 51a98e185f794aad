# The words of the project. Everything lives in .venv here; nothing is installed anywhere else.
#
#   make install      a .venv with all that the tests need; costs nothing when it is up to date
#   make quickstart   a model trained on this machine while the machine is taken away again and again
#   make test         what CI runs: lint, types, tests
#   make check        lint and types alone          make bench   figures for docs/benchmarks.md
#   make e2e          tests against real services   make docs    the docs' links and commands
#
# Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves some gigabytes.

PYTHON ?= python3
EXTRAS ?= train,deepspeed,data,wandb,tensorboard,sky,serve,dev
# Tests start real processes: two workers on the two cores of a small machine, a file's tests on one of them.
PYTEST_ARGS ?= -n 2 --dist loadscope
CODE := launcher task_templates trainer serving tests docs
# Named after the content, not the time, of what decides the installation: a fresh checkout changes all times.
STAMP := .venv/installed-$(shell (cat pyproject.toml constraints.txt; echo $(EXTRAS)) | sha256sum | cut -c 1-16)

.PHONY: install quickstart test check bench e2e docs

install: $(STAMP)

$(STAMP):
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@# torch first and by exact version: so pip takes a CPU build (2.13.0+cpu) wherever it finds one.
	.venv/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	.venv/bin/python -m pip check >/dev/null
	rm -f .venv/installed-*
	touch $@

# The same name goes on with the same run; RUN=another starts afresh.
RUN ?= quickstart
quickstart: install
	.venv/bin/vlaunch train --size tiny --spot --infra local --preempt-every 25s,5s --name $(RUN) --yes
	.venv/bin/vlaunch metrics $(RUN) --last 3 --png $(RUN).png
	.venv/bin/vlaunch cost-report $(RUN) --html $(RUN).html >/dev/null
	@echo "look at $(RUN).png and $(RUN).html; vlaunch status $(RUN) says where the model is"

test: check
	.venv/bin/python -m pytest $(PYTEST_ARGS)

check: install
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check --quiet $(CODE)
	.venv/bin/mypy

bench: install
	@for script in tests/benchmarks/*.py; do echo "== $$script"; .venv/bin/python $$script || exit 1; done

# S3 and GCS servers (radosgw where it is installed), and SkyPilot on two Slurm clusters of this machine (as root on
# Debian); what cannot run here is skipped with the reason.
e2e: install
	.venv/bin/python -m pip install --quiet --constraint constraints.txt 'skypilot[slurm]'
	.venv/bin/python -m pytest -o faulthandler_timeout=1800 tests/e2e

docs: install
	.venv/bin/python -m pytest tests/docs
