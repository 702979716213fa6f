# One word per job. Each sets up .venv when it has to (about a minute, once), then runs.
#   make test ARGS="-k ring"      make demo FILE=examples/01.py      make PYTHON=python3.12 test
PYTHON ?= python3
RUN = @$(PYTHON) tools/bootstrap.py

.DEFAULT_GOAL := help
.PHONY: help setup test demo lint types clauses bench faults stress schema coverage changelog docs lock all \
	bench-peers test-peers campaign

help: ; @$(PYTHON) tools/bootstrap.py --help
setup: ; $(RUN) setup
test: ; $(RUN) test $(ARGS)
demo: ; $(RUN) demo $(FILE) $(ARGS)
lint: ; $(RUN) lint $(ARGS)
types: ; $(RUN) types $(ARGS)
clauses: ; $(RUN) clauses $(ARGS)
bench: ; $(RUN) bench $(ARGS)
faults: ; $(RUN) faults $(ARGS)
stress: ; $(RUN) stress $(ARGS)
campaign: ; $(RUN) campaign $(ARGS)
schema: ; $(RUN) schema $(ARGS)
coverage: ; $(RUN) coverage $(ARGS)
changelog: ; $(RUN) changelog $(ARGS)
docs: ; $(RUN) docs $(ARGS)
lock: ; $(RUN) lock $(ARGS)
bench-peers: ; $(RUN) bench-peers $(ARGS)
test-peers: ; $(RUN) test-peers $(ARGS)
all: ; $(RUN) all
