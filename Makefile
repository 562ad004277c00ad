# make install      the command and what it needs, into .venv
# make quickstart   install, render and pack the glyphs, train on 2 Ray workers, evaluate
# make han          fetch Debian fonts, draw 23,000 Han characters, train on 21,000 of them
# make tune         12 trials over losses and learning rates on the glyphs, then a comparison on the test split
# make test         install what tests need, run the fast tests
# make test-gpu     the tests that need a CUDA device
# make check        lint, types, import contracts, spelling
# make test-slow    the longer tests
# make docs         renew the tables of docs/losses.md
# make study        all losses on the glyphs, three seeds, two runs at a time: an hour and more
# make benchmark    losses beside pytorch-metric-learning and the bare products; our reader beside webdataset; epoch plans;
#                   exact evaluation beside a bare faiss search; sums by node on slow links (needs root); checkpoints
#                   and tracking beside the same training without
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers and test ranks set their own number of threads; more than one per rank only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: install quickstart han tune test test-slow test-gpu check format benchmark study docs clean

install: $(VENV)/.run

quickstart: $(VENV)/.run
	$(BIN)/dmlscale train configs/quickstart.yaml

han: $(VENV)/.run
	$(BIN)/python -m dmlscale.data.glyphs.fetch data/han-fonts
	$(BIN)/dmlscale train configs/han/supervised_contrastive.yaml

tune: $(VENV)/.run
	$(BIN)/dmlscale tune configs/tune/glyphs.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.dev
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.reader
	$(BIN)/python -m benchmarks.epoch_plan
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.node_links
	$(BIN)/python -m benchmarks.overhead

study: $(VENV)/.dev
	$(BIN)/python -m benchmarks.study --jobs 2

docs: $(VENV)/.dev
	$(BIN)/dmlscale losses --renew docs/losses.md

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# uv installs these 6 GB in a minute where pip takes five; without it pip does the same.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 15), "python 3.11 to 3.14 is needed: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv || echo "no uv to be had: installing with pip"
	touch $@

define install
	if [ -x $(BIN)/uv ]; then $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e "$(1)"; \
	else $(BIN)/python -m pip install -q -c constraints.txt -e "$(1)"; fi
endef

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,.[cpu])
	touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,.[cpu$(comma)dev])
	touch $@ $(VENV)/.run

comma := ,
