# Everything happens in .venv, which the first call makes. GNU make 3.81 (macOS) and later.

PYTHON ?= python3
BIN := .venv/bin
INDEX := _build/html/index.html
export LANDSCAPE_SCALE := book

.NOTPARALLEL:
.PHONY: help book test lint results run figures strip benchmarks pages lab serve repository clean

help: ## list these targets
	@awk -F ': .*## ' '/^[a-z]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

book: .venv/installed ## build the book from scratch into _build/html; a warning is an error
	rm -rf _build
	TQDM_DISABLE=1 $(BIN)/jupyter-book build . -W --keep-going
	@echo "The book is at $(CURDIR)/$(INDEX)"

# Two workers of one thread each; threads of two would starve one another. Files in the order of their
# names, so that the longest, tests/book/test_smoke.py, is not left to the end.
PYTEST = OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest \
	--numprocesses 2 --dist loadfile --no-loadscope-reorder

test: lint book ## lint, types, unit tests, every chapter at book and at smoke scale, the built pages
	status=0; $(PYTEST) || status=$$?; \
	$(PYTEST) --nbval-lax --nbval-current-env book || status=$$?; \
	exit $$status

lint: .venv/installed ## ruff (library, tests and notebooks), mypy (library), the rules for pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/book/lint_pages.py

# In the terminal, where progress bars show; killed, it resumes. Then the notebook itself, which loads
# what was computed.
results: .venv/installed ## recompute a chapter on the real data, resumable: make results CHAPTER=02
	$(NAMED)
	cd book && LANDSCAPE_RECOMPUTE=1 MPLBACKEND=agg ../$(BIN)/ipython $(CHAPTER)_*.ipynb
	$(MAKE) run

run: .venv/installed ## run a chapter on its stored results, keep its checked numbers: make run CHAPTER=02
	$(NAMED)
	cd book && ../$(BIN)/jupyter-execute --inplace $(CHAPTER)_*.ipynb
	$(MAKE) strip figures

NAMED = @ls book/$(CHAPTER)_*.ipynb >/dev/null 2>&1 || { \
	echo "Name a chapter of the folder book, as in: make $@ CHAPTER=02"; exit 1; }

figures: .venv/installed ## write book/figures.md anew from what the chapters measured
	$(BIN)/python -m landscape_lib.figures

strip: .venv/installed ## clear the notebooks' outputs, but for cells marked keep_output
	$(BIN)/nbstripout --keep-count --keep-id --extra-keys metadata.language_info book/*.ipynb

benchmarks: .venv/installed ## measure speed on this machine, an idle one: an hour
	$(BIN)/python -m pip install --quiet --editable ".[benchmarks]"
	for name in against guests rates methods scaling fewer pictures; do $(BIN)/python benchmarks/$$name.py || exit 1; done

lab: .venv/installed ## open the chapters in JupyterLab, in a browser
	$(BIN)/jupyter lab --notebook-dir book

pages: ## print what the built pages weigh, how wide they are, when the first figure shows
	$(BIN)/python tests/built_pages.py

serve: ## show the built book in a browser, through a small server of this machine
	@test -f $(INDEX) || { echo "There is no book yet: make book"; exit 1; }
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

# As it was typed, with nothing expanded by make or the shell.
export NEW_URL := $(value URL)

repository: ## move the book to another address: make repository URL=https://github.com/you/your-book
	@case "$$NEW_URL" in https://?*) ;; *) false ;; esac && \
		case "$$NEW_URL" in *[!A-Za-z0-9:/._~@%+-]*) false ;; esac || { \
		echo "Name the address, without quotes or other special characters:"; \
		echo "make repository URL=https://..."; exit 1; }
	old=$$(sed -n 's/^  url: *//p' _config.yml); export old; \
		test -n "$$old" || { echo "_config.yml: expected a line '  url: https://...', got none"; exit 1; }; \
		git grep -lzIF -e "$$old" | xargs -0 perl -pi -e 's/\Q$$ENV{old}\E/$$ENV{NEW_URL}/g'

clean: ## remove what make made: the book and .venv
	rm -rf _build .venv

# Installed once, for all targets, and again when pyproject.toml has changed. A .venv that make began
# and did not finish is made anew; one that was there before stays.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		echo "The book needs Python 3.11, 3.12 or 3.13; $(PYTHON) is `$(PYTHON) --version 2>&1`."; \
		echo "Name another one, as in: make book PYTHON=python3.12"; exit 1; }
	@test ! -f .venv/unfinished || rm -rf .venv
	test -d .venv || { mkdir .venv && touch .venv/unfinished && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --editable ".[book,test,lab]"
	@$(BIN)/python -c "import matplotlib.font_manager" # its font cache, or a chapter would report it
	@rm -f .venv/unfinished
	@touch $@
