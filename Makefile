# Two commands for a newcomer: `make quickstart` and `make test`. Both set up .venv first.
# `make test-all` adds the tests that take long.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
DIGITS := runs/digits

.PHONY: quickstart test test-all check test-elsewhere lint benchmark docs clean

quickstart: $(VENV)/.installed
	@echo "1/5 old model, trained on the digits 0-4"
	$(RUN) fct_jax.train --config configs/digits_backbone_old.py --workdir $(DIGITS)/old
	@echo "2/5 new model, trained on all digits"
	$(RUN) fct_jax.train --config configs/digits_backbone_new.py --workdir $(DIGITS)/new
	@echo "3/5 FCT: from old embeddings to the new model's space"
	$(RUN) fct_jax.train --config configs/digits_fct.py --workdir $(DIGITS)/fct
	@echo "4/5 FastFill: the same with an uncertainty"
	$(RUN) fct_jax.train --config configs/digits_fastfill.py --workdir $(DIGITS)/fastfill
	@echo "5/5 evaluation"
	@rm -rf $(DIGITS)/report
	$(RUN) fct_jax.evaluate --config configs/digits_evaluate.py --workdir $(DIGITS)/report
	@$(RUN) tools.quickstart_check $(DIGITS)/report

# Two workers; a file stays with one of them, since its tests share what they have trained. Threads
# of linear algebra on cores that both keep busy would wait for one another by spinning.
PYTEST := OPENBLAS_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

# Everything but the tests marked slow.
test: $(VENV)/.installed-test check
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-test check
	$(PYTEST)

check: $(VENV)/.installed-test
	$(RUN) ruff check .
	$(RUN) ruff format --check .

# The numerical tests with other instruction sets, BLAS kernels and thread counts.
test-elsewhere: $(VENV)/.installed-test
	$(RUN) tools.test_elsewhere

lint: $(VENV)/.installed-test
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

benchmark: $(VENV)/.installed
	$(RUN) tools.benchmark

# The site of docs/, into site/; a warning or a link that leads nowhere is an error.
docs: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

clean:
	rm -rf runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -e '.[test]'
	@touch $@
