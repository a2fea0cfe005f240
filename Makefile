# battnb: everything you can do here. `make help` explains; nothing needs to be prepared by hand.
#
# Every target builds its own environment first (`.venv`, once, and again whenever
# pyproject.toml or constraints.txt change). Tools are called by path: nothing to activate.
# Written for GNU make 3.81 and later, so macOS's own make will do.

BIN   := .venv/bin
READY := .venv/.ready
# Which Python builds .venv: `make setup PY=/path/to/python` overrides the search.
PY    ?=
OUT   ?= runs/demo
JOBS  ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup sync check test demo docs lint clean distclean

help:
	@echo 'battnb: how a battery cell will fade, from a foundation model to verified int8 firmware'
	@echo
	@echo '  make demo       the whole way on the embedded simulated fleet; prints where the report is (minutes)'
	@echo '  make test       sync check, every chapter, every study with small parameters, every test (minutes)'
	@echo
	@echo '  make setup      only the environment: .venv with the pinned packages (about 2 minutes, once)'
	@echo '  make docs       the notebooks as a website in _docs (Quarto where installed, else our own renderer)'
	@echo '  make sync       for authors: clean the notebooks, export the package, fill the tables of README.md'
	@echo '  make check      make sync, then fail if that changed anything; then ruff'
	@echo '  make clean      remove what was built (site, test output); keeps .venv and runs/'
	@echo '  make distclean  make clean, and .venv too'
	@echo
	@echo '  PY=python3.12   build .venv with this Python (default: the first found from 3.11 on)'
	@echo '  OUT=runs/demo   where make demo writes'
	@echo '  BATTNB_DATA=DIR a folder of measured cells; without it everything runs on the simulated fleet'

setup: $(READY)
	@echo "battnb: environment ready in .venv ($$($(BIN)/python -V))"

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh "$(PY)"

sync: $(READY)
	@echo 'battnb: cleaning notebooks, exporting the package, filling README.md'
	@$(BIN)/nbdev_clean && env -u IN_TEST $(BIN)/nbdev_export && $(BIN)/python tools/readme.py

check: sync lint
	@git --no-pager diff --exit-code -- nbs README.md || { echo 'battnb: notebooks or README.md were not in step; look at the difference above and commit it' >&2; exit 1; }
	@test -z "$$(git status --porcelain -- battnb)" || { git status --short -- battnb >&2; echo 'battnb: package and notebooks differ; commit the files above' >&2; exit 1; }
	@echo 'battnb: notebooks, package and style are in order'

lint: $(READY)
	@echo 'battnb: ruff'
	@$(BIN)/ruff check -q .

# One thread per process: two workers on two cores should not fight over them.
TESTENV := OMP_NUM_THREADS=1 IN_TEST=1
test: $(READY)
	@echo 'battnb [1/3] notebooks and package in step?'
	@$(TESTENV) $(BIN)/python -m pytest -o addopts=-q -p no:cacheprovider -x tests/test_structure.py -k in_step
	@echo 'battnb [2/3] every chapter, top to bottom'
	@$(TESTENV) $(BIN)/nbdev_test --n_workers $(JOBS) --do_print
	@echo 'battnb [3/3] studies with small parameters, the site in a browser, everything else'
	@$(TESTENV) $(BIN)/python -m pytest -n $(JOBS) tests

demo: $(READY)
	@echo 'battnb [1/2] teacher, students, choice, firmware and report on the simulated fleet'
	@$(BIN)/battnb run --out $(OUT)
	@echo 'battnb [2/2] done. Open in a browser:'
	@cd $(OUT) && for f in *.html; do echo "  $$(pwd)/$$f"; done

docs: $(READY)
	@$(BIN)/python tools/docs.py

clean:
	rm -rf build dist _docs _proc .pytest_cache .ruff_cache .hypothesis
	find battnb tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
