# make demo         train a tiny model on the embedded data and explain three held-out pictures
# make test         run the quick tests; make test-slow: the others. Neither needs a GPU, Java or a hub
# make quality      ruff, mypy, import contracts; make style: format
# make test-lowest  run the tests with the lowest versions that setup.cfg allows, in .venv-lowest
# make audit        look for known vulnerabilities of the versions in constraints.txt
# make release      write the wheel and its bill of materials to dist/

PYTHON ?= python3
BIN := .venv/bin
SOURCES := modeling_sevlm processing evaluation metrics studies benchmarks examples tests app.py app_page.py train.py \
	evaluate_sevlm.py
# No target needs a hub; offline mode avoids waiting for one.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Debian and Ubuntu packages for the page's test.
BROWSER := chromium chromium-driver

.PHONY: demo figures app browser test test-slow test-lowest torture audit release style quality clean

demo: .venv/demo
	rm -rf outputs/demo/checkpoint-*  # training refuses a folder with later checkpoints
	$(BIN)/python train.py --output_dir outputs/demo
	$(BIN)/python evaluate_sevlm.py outputs/demo --split test --output_dir outputs/demo/evaluation
	$(BIN)/python examples/gallery.py outputs/demo --output outputs/demo/gallery.png

# Draws the paper's figures for the demo's run, and measures how well its attention maps find the named motif.
figures: .venv/study
	@test -f outputs/demo/evaluation/results.json || { echo "No outputs/demo yet: run make demo"; exit 1; }
	$(BIN)/python -m studies.figures confusion outputs/demo/evaluation/results.json --output $(FIGURES)/confusion.png
	$(BIN)/python -m studies.figures examples outputs/demo/evaluation/predictions.json --output $(FIGURES)/examples.png
	$(BIN)/python -m studies.figures tsne outputs/demo --split train --emotion amusement --output $(FIGURES)/tsne.png
	$(BIN)/python -m studies.figures training outputs/demo/training_log.json --output $(FIGURES)/training.png
	$(BIN)/python -m studies.attention outputs/demo --split held-out
FIGURES ?= outputs/figures

# The page for the demo's model or another one: make app MODEL=org/sevlm-artemis HF_HUB_OFFLINE=0
MODEL ?= outputs/demo
app: .venv/app
	@test "$(MODEL)" != outputs/demo -o -f outputs/demo/config.json || { echo "No outputs/demo yet: run make demo"; exit 1; }
	$(BIN)/python app.py --model $(MODEL)

# Without a browser, tests/app/test_app.py is skipped.
browser:
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(BROWSER)

test: .venv/dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile

# Tests that take longer than 40 seconds.
test-slow: .venv/dev
	$(BIN)/python -m pytest -q -m slow

test-lowest: .venv-lowest/dev
	.venv-lowest/bin/python -m pytest -q -n auto --dist loadfile

# Long trials, up to half an hour. One of them: .venv/bin/python tests/torture crash
torture: .venv/dev
	$(BIN)/python tests/torture

# Fails if a vulnerability is known, or if the index cannot be reached.
audit: .venv-release/tools
	.venv-release/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# The bill of materials (CycloneDX) lists the tested versions.
release: .venv-release/tools
	rm -rf build dist
	.venv-release/bin/python -m build --wheel --outdir dist .
	.venv-release/bin/cyclonedx-py requirements --output-reproducible --mc-type library \
		--output-format JSON --output-file dist/sevlm.cdx.json constraints.txt

style: .venv/dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

quality: .venv/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# One stamp per set of extras, renewed when the requirements change.
.venv/%: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

.venv-lowest/dev: setup.cfg constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable '.[dev]'
	touch $@

RELEASE_TOOLS := build==1.6.1 cyclonedx-bom==7.5.0 pip-audit==2.10.1
.venv-release/tools: Makefile
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check $(RELEASE_TOOLS)
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-release build dist outputs *.egg-info
