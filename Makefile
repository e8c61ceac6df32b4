# On a bare machine, which has to have python3 alone:
#   make demo   PERL end to end on the embedded task; a summary and a report to look at
#   make test   every test
#   make lint   style alone
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
# The machine may have none of these set; a CPU build of PyTorch is enough for the parity tests.
TORCH ?= torch==2.13.0

.PHONY: demo test lint notebook clean

demo: $(VENV)/.installed
	$(RUN) -m perl.cli launch --config=demo --workdir=runs/demo
	@echo "report: $(CURDIR)/runs/demo/report.html"

test: lint
	$(RUN) -m pytest -q -n 2 --dist worksteal tests

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check perl configs experiments tests setup.py

# Everything is installed once, and again when setup.py changes.
$(VENV)/.installed: setup.py
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --upgrade pip
	$(VENV)/bin/pip install -q -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/pip install -q $(TORCH)
	$(VENV)/bin/pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs *.egg-info
