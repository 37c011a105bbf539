# make demo: train a tiny model on the embedded data and look at three held-out pictures.
# make test: all tests. Both build .venv themselves; neither needs a GPU, Java or any hub.
# make test-lowest: the same with the lowest versions that setup.cfg allows, in .venv-lowest.
# make audit, make release: known vulnerabilities of constraints.txt; dist/ with the wheel and a bill of its materials.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := modeling_sevlm processing evaluation metrics studies benchmarks web examples tests app.py train.py \
	evaluate_sevlm.py sevlm.py
# Nothing here may depend on a hub; a machine without one should not wait for time-outs either.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# What the browser's test needs from Debian or Ubuntu.
BROWSER := chromium chromium-driver

.PHONY: demo figures app browser test test-slow test-lowest torture audit release style quality clean

demo: .venv/demo
	rm -rf outputs/demo/checkpoint-*  # of an earlier demo, which a run does not begin beside
	$(BIN)/python train.py --output_dir outputs/demo
	$(BIN)/python evaluate_sevlm.py outputs/demo --split test --output_dir outputs/demo/evaluation
	$(BIN)/python examples/gallery.py outputs/demo --output outputs/demo/gallery.png

# The paper's figures of the demo's run, and how much its maps look at what the words name.
figures: .venv/study
	@test -f outputs/demo/evaluation/results.json || { echo "No outputs/demo yet: run make demo"; exit 1; }
	$(BIN)/python -m studies.figures confusion outputs/demo/evaluation/results.json --output $(FIGURES)/confusion.png
	$(BIN)/python -m studies.figures examples outputs/demo/evaluation/predictions.json --output $(FIGURES)/examples.png
	$(BIN)/python -m studies.figures tsne outputs/demo --split train --emotion amusement --output $(FIGURES)/tsne.png
	$(BIN)/python -m studies.figures training outputs/demo/training_log.json --output $(FIGURES)/training.png
	$(BIN)/python -m studies.attention outputs/demo --split held-out
FIGURES ?= outputs/figures

# The page on the demo's model, or on another: make app MODEL=org/sevlm-artemis HF_HUB_OFFLINE=0
MODEL ?= outputs/demo
app: .venv/app
	@test "$(MODEL)" != outputs/demo -o -f outputs/demo/config.json || { echo "No outputs/demo yet: run make demo"; exit 1; }
	$(BIN)/python app.py --model $(MODEL)

# Without it, tests/app/test_app.py says that it was skipped.
browser:
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(BROWSER)

test: .venv/dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile

# Tests that take most of a minute or more.
test-slow: .venv/dev
	$(BIN)/python -m pytest -q -m slow

test-lowest: .venv-lowest/dev
	.venv-lowest/bin/python -m pytest -q -n auto --dist loadfile

# Long trials, up to half an hour; one of them: .venv/bin/python tests/torture crash
torture: .venv/dev
	$(BIN)/python tests/torture

# Fails if there is a vulnerability, and says so if the index could not be reached.
audit: .venv-release/tools
	.venv-release/bin/python .ci/audit.py constraints.txt

# The bill (CycloneDX) names the versions that were tested.
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

# One stamp for each set of extras, renewed when the requirements change.
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
