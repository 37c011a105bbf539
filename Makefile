# make demo         train a tiny model on the embedded data and explain three held-out pictures
# make test         run the quick tests; make test-slow: the others. Neither needs a GPU, Java or a hub
# make rehearsal    all tables and figures of the paper, as small as possible, on the embedded data or your own
# make quality      ruff, mypy, import contracts; make style: format
# make test-lowest  run the tests with the lowest versions that setup.cfg allows, in .venv-lowest
# make upstream     run the test suites of transformers' models and processors on ours
# make audit        look for known vulnerabilities of the versions in constraints.txt
# make release      write the wheel and its bill of materials to dist/

PYTHON ?= python3
BIN := .venv/bin
SOURCES := modeling_sevlm processing evaluation metrics studies benchmarks examples tests app.py app_page.py \
	app_uploads.py sevlm.py train.py evaluate_sevlm.py
# No target needs a hub; offline mode avoids waiting for one.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Debian and Ubuntu packages for the page's test.
BROWSER := chromium chromium-driver

.PHONY: demo figures rehearsal app browser test test-slow test-lowest upstream torture audit release style quality clean

demo: .venv/demo
	$(BIN)/python train.py --output_dir outputs/demo --overwrite_output_dir
	$(BIN)/python evaluate_sevlm.py outputs/demo --split test --output_dir outputs/demo/evaluation \
		--overwrite_output_dir
	$(BIN)/python examples/gallery.py outputs/demo --output outputs/demo/gallery.png

# Draws the paper's figures for the demo's run. Measures how well its attention maps find the named motif, and how many
# sentences name the right one.
figures: .venv/study
	@test -f outputs/demo/evaluation/results.json || { echo "No outputs/demo yet: run make demo"; exit 1; }
	$(BIN)/python -m studies.figures confusion outputs/demo/evaluation/results.json --output $(FIGURES)/confusion.png
	$(BIN)/python -m studies.figures examples outputs/demo/evaluation/predictions.json --output $(FIGURES)/examples.png
	$(BIN)/python -m studies.figures tsne outputs/demo --split train --emotion amusement --output $(FIGURES)/tsne.png
	$(BIN)/python -m studies.figures training outputs/demo/training_log.json --output $(FIGURES)/training.png
	$(BIN)/python -m studies.attention outputs/demo --split held-out
	$(BIN)/python -m studies.objects outputs/demo
FIGURES ?= outputs/figures

# All tables and figures of the paper. By default one short run per variant on the embedded data: the figures mean
# nothing. Your own data: make rehearsal ANNOTATIONS=artemis.csv IMAGES=wikiart/ LEXICON=NRC-VAD-Lexicon.txt
# with the arguments of train.py and studies.reproduce in REHEARSAL.
ifdef ANNOTATIONS
DATA := --annotations $(ANNOTATIONS) --images $(IMAGES) --vad_lexicon $(LEXICON)
REHEARSAL ?=
else
REHEARSAL ?= --seeds 1 --paintings 10 --judge_epochs 2 --num_paintings 240 --image_size 32 --max_steps 120 \
	--per_device_train_batch_size 8 --learning_rate 8e-3 --vad_learning_rate 8e-3 --warmup_steps 4 \
	--eval_strategy no --save_strategy no --load_best_model_at_end false
endif
rehearsal: .venv/study
	$(BIN)/python -m studies.reproduce --output_dir outputs/rehearsal $(DATA) $(REHEARSAL)

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

# Tests that take longer than 40 seconds or need torchao, which prints a message whenever a program starts.
test-slow: .venv/dev .venv/quantise
	$(BIN)/python -m pytest -q -m slow -n auto --dist loadfile

# Without the parts that no library can break alone.
test-lowest: .venv-lowest/dev
	.venv-lowest/bin/python -m pytest -q -n auto --dist loadfile --ignore tests/benchmarks --ignore tests/studies \
		--ignore tests/docs

# The suites of the tested and of the lowest version of transformers, which pip downloads.
upstream: .venv/dev .venv-lowest/dev
	$(BIN)/python -m tests.upstream
	.venv-lowest/bin/python -m tests.upstream

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
	rm -rf .venv .venv-lowest .venv-release .upstream build dist outputs *.egg-info
