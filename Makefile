# FlowFool. `make` prints the targets; each builds what it needs, and goes on where a killed one stopped.

PRESET ?= quickstart
RUNS ?= runs
RUN := $(RUNS)/$(PRESET)
PYTHON ?= python3
VENV ?= .venv

# Where UCF-101 lies (small, paper) and NVIDIA's FlowNet2 checkpoint (paper); frame pairs with true flow (evaluate-flownet2).
UCF101 ?=
FLOWNET2 ?=
TRUE_FLOW ?=
# Flow images to take over (import-flow).
FROM ?=

# What report and compare read: a sweep's folder, or the run folder that holds it. Where a comparison is written.
SWEEP ?= $(RUN)
SWEEPS ?=
COMPARISON ?= $(RUNS)/comparison

# The Trainer's own flags, and more of them for one step, e.g. SWEEP_ARGS="--data.init_args.max_clips=10".
DEVICES ?=
NODES ?=
DATA_ARGS ?=
FLOW_ARGS ?=
FLOWNET2_ARGS ?=
CLASSIFIER_ARGS ?=
TRUE_FLOW_ARGS ?=
SWEEP_ARGS ?=
PATHS_ARGS ?=
EXPORT_ARGS ?=
WORKSPACE_ARGS ?=
BENCH_ARGS ?=

PRESETS := $(filter-out data flow classifier logger,$(notdir $(patsubst %/,%,$(wildcard configs/*/))))
ifeq ($(filter $(PRESET),$(PRESETS)),)
$(error PRESET=$(PRESET): no such preset; there are: $(PRESETS))
endif

CONFIG := configs/$(PRESET)
INSTALLED := $(VENV)/installed
RESULTS := $(RUN)/attack-sweep/results.json
# FlowNet2 first, so that a checkpoint that is not there or does not fit is told before days of other trainings.
FLOWS := flownet2 tvl1 farneback  # configs/flow/raft.yaml is there, too: make train-classifiers FLOWS=raft
FINE_TUNED := $(RUN)/flownet2/final.ckpt
# Where one of these has changed, the step looks again: it goes on, finds nothing to do, or says what differs.
PARTS := $(CONFIG)/dataset.yaml $(CONFIG)/flownet2.yaml $(wildcard configs/flow/*.yaml configs/classifier/*.yaml)
CLASSIFIERS := $(FLOWS:%=$(RUN)/classifiers/%/final.ckpt)

# An algorithm's YAML: the preset's own network, or a shared one. Relative to the preset's folder, as all names in its YAMLs.
flow_yaml = $(if $(wildcard $(CONFIG)/$(1).yaml),$(1).yaml,../flow/$(1).yaml)

TRAINER := $(if $(DEVICES),--trainer.devices=$(DEVICES)) $(if $(NODES),--trainer.num_nodes=$(NODES))
LIGHTNING := $(VENV)/bin/python -m lightning_modules
# A pass on the CPU takes and gives back hundreds of megabytes. By default glibc returns them to the system each time, and
# page faults cost a sweep a tenth of its time; up to 16 GiB that are free stay with the process instead.
ON_HEAP := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

# The YAMLs name these as ${RUN}, ${UCF101}, ${FLOWNET2}, ${TRUE_FLOW}.
export RUN
export UCF101
export FLOWNET2
export TRUE_FLOW

# Threads that wait for each other asleep: spinning ones take the cores from the processes that load the data.
export OMP_WAIT_POLICY ?= PASSIVE

# In Weights & Biases the steps of a preset are runs of one group, named after their folders.
export WANDB_RUN_GROUP ?= $(PRESET)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install data train-flownet2 evaluate-flownet2 train-classifiers attack-sweep report compare
.PHONY: check-paths export-clips evaluate-clips wandb-workspace
.PHONY: import-flow flow-tvl1 flow-farneback flow-flownet2 verify-tvl1 verify-farneback verify-flownet2
.PHONY: repair-tvl1 repair-farneback repair-flownet2 test test-all lint format clean FORCE
.PHONY: bench-correlation bench-flownet2 bench-extraction bench-flow-reading bench-sweep bench-loss bench-gpu bench-report

help: ## print the targets
	@echo "make TARGET [PRESET=$(subst $() ,|,$(strip $(PRESETS)))] [UCF101=DIR] [RUNS=DIR] [SWEEP=DIR] [DEVICES=N] [NODES=N]"
	@echo "  DEVICES, NODES: of training, attack-sweep and evaluate-flownet2; DEVICES also of flow-flownet2, repair-flownet2"
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+)[^:]*:.*## (.*)/  \1\t\2/' | expand -t 22

install: $(INSTALLED) ## make the virtual environment
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]}: FlowFool needs 3.11 or newer; make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

data: $(INSTALLED) ## check the videos, or render the embedded ones, and say what is used
	$(VENV)/bin/python -m datamodules data --dataset $(CONFIG)/dataset.yaml $(DATA_ARGS)

import-flow: | $(INSTALLED) ## take over flow that is there as images, FROM=DIR; then train-classifiers FLOWS=imported
	$(if $(FROM),,$(error import-flow: give the folder of the flow images, FROM=DIR))
	$(VENV)/bin/python -m datamodules import_flow --source $(FROM) --dataset $(CONFIG)/dataset.yaml --estimator configs/flow/imported.yaml --store $(RUN)/flow/imported $(FLOW_ARGS)

# Flow stores by themselves; training fills what is missing of them, too.
STORE = --dataset $(CONFIG)/dataset.yaml --estimator $(CONFIG)/$(call flow_yaml,$*) --store $(RUN)/flow/$*
# A network's processes, one on each GPU unless DEVICES says how many; OpenCV's algorithms take all cores.
WORKERS = $(if $(filter flownet2,$*),$(if $(DEVICES),--workers=$(DEVICES)))

flow-tvl1 flow-farneback flow-flownet2: flow-%: | $(INSTALLED) ## fill a flow store (also flow-farneback; flow-flownet2 by DEVICES=N processes); FLOW_ARGS="--shard=0/4": a quarter
	$(VENV)/bin/python -m datamodules extract $(STORE) $(WORKERS) $(FLOW_ARGS)
flow-flownet2: $(FINE_TUNED)

verify-tvl1 verify-farneback verify-flownet2: verify-%: | $(INSTALLED) ## read a flow store again and list each fault (also verify-farneback, verify-flownet2)
	$(VENV)/bin/python -m datamodules verify $(STORE)

repair-tvl1 repair-farneback repair-flownet2: repair-%: | $(INSTALLED) ## compute again what verify finds (also repair-farneback; repair-flownet2 by DEVICES=N processes)
	$(VENV)/bin/python -m datamodules repair $(STORE) $(WORKERS)

train-flownet2: $(FINE_TUNED) ## fine-tune FlowNet2 on TV-L1 flow
$(FINE_TUNED): $(CONFIG)/train-flownet2.yaml $(PARTS) $(RUN)/flownet2.args | $(INSTALLED)
	WANDB_NAME=flownet2 $(LIGHTNING) fit --config $< --trainer.default_root_dir=$(@D) $(TRAINER) $(FLOWNET2_ARGS)
	@touch -c $@

evaluate-flownet2: $(FINE_TUNED) ## errors of the fine-tuned FlowNet2 on the test clips and, in TRUE_FLOW=DIR, against true flow
	WANDB_MODE=disabled $(LIGHTNING) test --config $(CONFIG)/train-flownet2.yaml --trainer.default_root_dir=$(<D) $(TRAINER) $(FLOWNET2_ARGS)
	$(if $(TRUE_FLOW),WANDB_MODE=disabled $(LIGHTNING) test --config $(CONFIG)/train-flownet2.yaml --data configs/data/true_flow.yaml --trainer.default_root_dir=$(<D) $(TRAINER) $(FLOWNET2_ARGS) $(TRUE_FLOW_ARGS))

train-classifiers: $(CLASSIFIERS) ## train one flow classifier for each flow algorithm
$(CLASSIFIERS): $(RUN)/classifiers/%/final.ckpt: $(CONFIG)/train-classifier.yaml $(PARTS) $(RUN)/classifiers.args | $(INSTALLED)
	WANDB_NAME=classifier-$* FLOW=$* FLOW_YAML=$(call flow_yaml,$*) $(LIGHTNING) fit --config $< --trainer.default_root_dir=$(@D) $(TRAINER) $(CLASSIFIER_ARGS)
	@touch -c $@
# The one whose flow a trained network computes; others can do without it.
$(RUN)/classifiers/flownet2/final.ckpt: $(FINE_TUNED)

attack-sweep: $(RESULTS) ## attack the whole system at every epsilon, white-box and by transfer
	$(if $(PRINTED),,@cat $(RUN)/attack-sweep/summary.txt; echo "Report: $(RUN)/attack-sweep/report/index.html")
$(RESULTS): $(CONFIG)/attack-sweep.yaml $(PARTS) $(RUN)/attack-sweep.args $(CLASSIFIERS) | $(INSTALLED)
	WANDB_NAME=attack-sweep $(ON_HEAP) $(LIGHTNING) test --config $< --trainer.default_root_dir=$(@D) $(TRAINER) $(SWEEP_ARGS)
	@touch -c $@
	$(eval PRINTED := 1)

report: | $(INSTALLED) ## tables, figures and page once more, from the records of PRESET's sweep or of SWEEP=DIR alone
	$(VENV)/bin/python -m attacks report $(SWEEP)

comma := ,
compare: | $(INSTALLED) ## sweeps side by side, SWEEPS="runs/small runs/other"; COMPARISON=DIR takes the page
	$(if $(word 2,$(SWEEPS)),,$(error compare: give at least two sweeps, SWEEPS="DIR DIR"))
	$(VENV)/bin/python -m attacks compare $(wordlist 1,2,$(SWEEPS)) --output=$(COMPARISON) $(if $(word 3,$(SWEEPS)),--more='[$(subst $() ,$(comma),$(wordlist 3,99,$(SWEEPS)))]')

check-paths: $(RESULTS) ## classes from stored PNG flow, memory and lossless video must agree on every test stack
	$(LIGHTNING).prediction_paths --config $(CONFIG)/attack-sweep.yaml $(SWEEP_ARGS) --stores $(RUN)/flow --sweep $(RUN)/attack-sweep --data.init_args.max_clips=null --data.init_args.max_stacks=null $(PATHS_ARGS)
	$(VENV)/bin/python -m attacks report $(RUN)

export-clips: $(RESULTS) ## the sweep's examples as video files, judged; EXPORT_ARGS="--clips=[…] --lpips=alexnet.pth"
	$(LIGHTNING).exported_clips export --config $(CONFIG)/attack-sweep.yaml $(SWEEP_ARGS) --sweep $(RUN)/attack-sweep --output $(RUN)/clips $(EXPORT_ARGS)

evaluate-clips: $(CLASSIFIERS) ## read the exported video files and judge them again: the same verdicts, or an error
	$(LIGHTNING).exported_clips evaluate --config $(CONFIG)/attack-sweep.yaml $(SWEEP_ARGS) --exported $(RUN)/clips

wandb-workspace: $(RESULTS) ## a saved W&B workspace of the sweep and its trainings, once their runs are online
	$(LIGHTNING).wandb_workspace $(RUN)/attack-sweep --group $(WANDB_RUN_GROUP) $(WORKSPACE_ARGS)

# Each changes only when the arguments of its step do, so that other arguments are not silently ignored.
$(RUN)/flownet2.args: STEP_ARGS = $(FLOWNET2) $(FLOWNET2_ARGS)
$(RUN)/classifiers.args: STEP_ARGS = $(CLASSIFIER_ARGS)
$(RUN)/attack-sweep.args: STEP_ARGS = $(SWEEP_ARGS)
$(RUN)/%.args: FORCE
	@mkdir -p $(@D); echo '$(UCF101) $(STEP_ARGS)' | cmp -s - $@ || echo '$(UCF101) $(STEP_ARGS)' > $@

test: $(INSTALLED) ## run the tests; UCF101=DIR and FLOWNET2_ORACLE=DIR add those that need real data
	$(VENV)/bin/python -m pytest -m "not slow"

test-all: $(INSTALLED) ## run the slow tests too
	$(VENV)/bin/python -m pytest

bench-correlation: $(INSTALLED) ## the correlation layer beside a plain loop and, where installed, the compiled extension
	$(VENV)/bin/python tests/benchmarks/correlation.py $(BENCH_ARGS)

bench-extraction: $(INSTALLED) ## TV-L1 extraction beside a loop over cv2 (BENCH_ARGS=--algorithm=farneback), and UCF-101 at that rate
	$(VENV)/bin/python tests/benchmarks/extraction.py $(UCF101) $(BENCH_ARGS)

bench-flow-reading: $(INSTALLED) ## stacks read from a flow store beside bare imdecode
	$(VENV)/bin/python tests/benchmarks/flow_reading.py $(BENCH_ARGS)

bench-report: $(INSTALLED) ## the report of 200,000 made-up records: seconds and memory
	$(VENV)/bin/python tests/benchmarks/report.py $(BENCH_ARGS)

bench-flownet2: $(INSTALLED) ## FlowNet2 beside its bare convolutions; pairs per second and signs in each precision
	$(VENV)/bin/python tests/benchmarks/flownet2.py $(BENCH_ARGS)

bench-sweep: $(INSTALLED) ## the sweep engine beside the adversarial-robustness-toolbox and the plain algorithm (BENCH_ARGS="--full", "--limit")
	$(ON_HEAP) $(VENV)/bin/python tests/benchmarks/sweep_engine.py $(BENCH_ARGS)

bench-loss: $(INSTALLED) ## accuracy under attack by the loss and the scale of the logits (BENCH_ARGS="--config configs/small/attack-sweep.yaml": a trained system)
	$(VENV)/bin/python tests/benchmarks/loss.py $(BENCH_ARGS)

bench-gpu: $(INSTALLED) ## bench-sweep's figures of a GPU, one after another
	PYTHON=$(VENV)/bin/python sh tests/benchmarks/gpu.sh

lint: $(INSTALLED) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED) ## let ruff format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove the runs of this preset: data, flow, checkpoints, results
	rm -rf $(RUN)
