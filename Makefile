# make demo: train a tiny model on the embedded data and look at three held-out pictures.
# make test: all tests. Both build .venv themselves; neither needs a GPU, Java or any hub.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := modeling_sevlm processing evaluation metrics studies benchmarks examples tests train.py evaluate_sevlm.py
# Nothing here may depend on a hub; a machine without one should not wait for time-outs either.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test style quality clean

demo: .venv/demo
	$(BIN)/python train.py --output_dir outputs/demo
	$(BIN)/python evaluate_sevlm.py outputs/demo --split test --output_dir outputs/demo/evaluation
	$(BIN)/python examples/gallery.py outputs/demo --output outputs/demo/gallery.png

test: .venv/dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile

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

clean:
	rm -rf .venv outputs *.egg-info
