# FlowFool. `make` prints the targets; each builds what it needs, and goes on where a killed one stopped.

PRESET ?= quickstart
RUNS ?= runs
PYTHON ?= python3
VENV ?= .venv

# Where UCF-101 lies (small, paper) and NVIDIA's FlowNet2 checkpoint (paper); frame pairs with true flow (evaluate-flownet2).
UCF101 ?=
FLOWNET2 ?=
TRUE_FLOW ?=
# A dataset's YAML instead of the preset's own, e.g. configs/data/ucf101_native.yaml: UCF-101 at its native frame rate.
DATASET ?=
# Flow images to take over (import-flow).
FROM ?=

# What report and compare read: a sweep's folder, or the run folder that holds it. Where a comparison is written.
# The shell reads SWEEPS: names with spaces are quoted within, SWEEPS="'my runs/small' 'my runs/other'".
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

# Names may hold spaces, #, quotes, parentheses. What make cannot keep from reading is refused: $ in all of them, and in
# RUNS, whose files are targets, what patterns, rules and wildcards are made of.
refuse = $(error $(1)=$(value $(1)): make cannot take $(2) in a name; give another name, or a link to the folder)
$(foreach v,RUNS UCF101 FLOWNET2 TRUE_FLOW DATASET FROM SWEEP SWEEPS COMPARISON,\
  $(if $(filter-out file,$(origin $v)),$(if $(findstring $$,$(value $v)),$(call refuse,$v,$$))))
$(foreach c,% ; | \ * ? [,$(if $(findstring $c,$(RUNS)),$(call refuse,RUNS,$c)))
$(if $(filter -% ~%,$(firstword $(RUNS))),$(call refuse,RUNS,- or ~ first))

# A name for the shell, and the run folder as make's own targets spell it.
quoted = '$(subst ','\'',$(1))'
RUN := $(RUNS)/$(PRESET)
RUN_TARGET := $(subst :,\:,$(subst $() ,\ ,$(RUN)))

$(if $(DATASET),$(if $(shell test -f $(call quoted,$(DATASET)) && echo 1),,$(error DATASET=$(DATASET): no such file; give a dataset's YAML)))

CONFIG := configs/$(PRESET)
INSTALLED := $(VENV)/installed
RESULTS := $(RUN_TARGET)/attack-sweep/results.json
# FlowNet2 first, so that a checkpoint that is not there or does not fit is told before days of other trainings.
FLOWS := flownet2 tvl1 farneback  # configs/flow/raft.yaml is there, too: make train-classifiers FLOWS=raft
FINE_TUNED := $(RUN_TARGET)/flownet2/final.ckpt
# Where one of these has changed, the step looks again: it goes on, finds nothing to do, or says what differs.
PARTS := $(CONFIG)/dataset.yaml $(CONFIG)/flownet2.yaml $(wildcard configs/flow/*.yaml configs/classifier/*.yaml)
CLASSIFIERS := $(foreach flow,$(FLOWS),$(RUN_TARGET)/classifiers/$(flow)/final.ckpt)

# An algorithm's YAML: the preset's own network, or a shared one. Relative to the preset's folder, as all names in its YAMLs.
flow_yaml = $(if $(wildcard $(CONFIG)/$(1).yaml),$(1).yaml,../flow/$(1).yaml)

# The dataset of a command and of a step; relative to where make runs, as all names on its command line.
GIVEN_DATASET = --dataset $(call quoted,$(or $(DATASET),$(CONFIG)/dataset.yaml))
OTHER_DATASET = $(if $(DATASET),--data.init_args.dataset=$(call quoted,$(DATASET)))

TRAINER := $(if $(DEVICES),--trainer.devices=$(DEVICES)) $(if $(NODES),--trainer.num_nodes=$(NODES))
LIGHTNING := $(VENV)/bin/python -m lightning_modules
# A pass on the CPU takes and gives back hundreds of megabytes. By default glibc returns them to the system each time, and
# page faults cost a sweep a tenth of its time; up to 16 GiB that are free stay with the process instead.
ON_HEAP := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

# The YAMLs name these as ${oc.env:RUN}, ${oc.env:UCF101}, ${oc.env:FLOWNET2}, ${oc.env:TRUE_FLOW}.
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
	@echo "make TARGET [PRESET=$(subst $() ,|,$(strip $(PRESETS)))] [UCF101=DIR] [RUNS=DIR] [SWEEP=DIR] [DATASET=YAML] [DEVICES=N] [NODES=N]"
	@echo "  DATASET: a dataset's YAML instead of the preset's own, in every target that reads videos"
	@echo "  DEVICES, NODES: of training, attack-sweep and evaluate-flownet2; DEVICES also of flow-flownet2, repair-flownet2"
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+)[^:]*:.*## (.*)/  \1\t\2/' | expand -t 22

install: $(INSTALLED) ## make the virtual environment
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python {sys.version.split()[0]}: FlowFool needs 3.11 or newer; make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

data: $(INSTALLED) ## check the videos, or render the embedded ones, and say what is used
	$(VENV)/bin/python -m datamodules data $(GIVEN_DATASET) $(DATA_ARGS)

import-flow: | $(INSTALLED) ## take over flow that is there as images, FROM=DIR; then train-classifiers FLOWS=imported
	$(if $(FROM),,$(error import-flow: give the folder of the flow images, FROM=DIR))
	$(VENV)/bin/python -m datamodules import_flow --source $(call quoted,$(FROM)) $(GIVEN_DATASET) --estimator configs/flow/imported.yaml --store $(call quoted,$(RUN)/flow/imported) $(FLOW_ARGS)

# Flow stores by themselves; training fills what is missing of them, too.
STORE = $(GIVEN_DATASET) --estimator $(CONFIG)/$(call flow_yaml,$*) --store $(call quoted,$(RUN)/flow/$*)
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
$(FINE_TUNED): $(CONFIG)/train-flownet2.yaml $(PARTS) $(RUN_TARGET)/flownet2.args | $(INSTALLED)
	WANDB_NAME=flownet2 $(LIGHTNING) fit --config $< --trainer.default_root_dir=$(call quoted,$(RUN)/flownet2) $(TRAINER) $(OTHER_DATASET) $(FLOWNET2_ARGS)
	@touch -c $(call quoted,$@)

evaluate-flownet2: $(FINE_TUNED) ## errors of the fine-tuned FlowNet2 on the test clips and, in TRUE_FLOW=DIR, against true flow
	WANDB_MODE=disabled $(LIGHTNING) test --config $(CONFIG)/train-flownet2.yaml --trainer.default_root_dir=$(call quoted,$(RUN)/flownet2) $(TRAINER) $(OTHER_DATASET) $(FLOWNET2_ARGS)
	$(if $(TRUE_FLOW),WANDB_MODE=disabled $(LIGHTNING) test --config $(CONFIG)/train-flownet2.yaml --data configs/data/true_flow.yaml --trainer.default_root_dir=$(call quoted,$(RUN)/flownet2) $(TRAINER) $(FLOWNET2_ARGS) $(TRUE_FLOW_ARGS))

train-classifiers: $(CLASSIFIERS) ## train one flow classifier for each flow algorithm
# No pattern: make's patterns do not match names with spaces. The last word of such a target ends with the flow's name.
THIS_FLOW = $(notdir $(patsubst %/final.ckpt,%,$(lastword $@)))
$(CLASSIFIERS): $(CONFIG)/train-classifier.yaml $(PARTS) $(RUN_TARGET)/classifiers.args | $(INSTALLED)
	WANDB_NAME=classifier-$(THIS_FLOW) FLOW=$(THIS_FLOW) FLOW_YAML=$(call flow_yaml,$(THIS_FLOW)) $(LIGHTNING) fit --config $< --trainer.default_root_dir=$(call quoted,$(RUN)/classifiers/$(THIS_FLOW)) $(TRAINER) $(OTHER_DATASET) $(CLASSIFIER_ARGS)
	@touch -c $(call quoted,$@)
# The one whose flow a trained network computes; others can do without it.
$(RUN_TARGET)/classifiers/flownet2/final.ckpt: $(FINE_TUNED)

attack-sweep: $(RESULTS) ## attack the whole system at every epsilon, white-box and by transfer
	$(if $(PRINTED),,@cat $(call quoted,$(RUN)/attack-sweep/summary.txt); echo Report: $(call quoted,$(RUN)/attack-sweep/report/index.html))
$(RESULTS): $(CONFIG)/attack-sweep.yaml $(PARTS) $(RUN_TARGET)/attack-sweep.args $(CLASSIFIERS) | $(INSTALLED)
	WANDB_NAME=attack-sweep $(ON_HEAP) $(LIGHTNING) test --config $< --trainer.default_root_dir=$(call quoted,$(RUN)/attack-sweep) $(TRAINER) $(OTHER_DATASET) $(SWEEP_ARGS)
	@touch -c $(call quoted,$@)
	$(eval PRINTED := 1)

report: | $(INSTALLED) ## tables, figures and page once more, from the records of PRESET's sweep or of SWEEP=DIR alone
	$(VENV)/bin/python -m attacks report $(call quoted,$(SWEEP))

compare: | $(INSTALLED) ## sweeps side by side, SWEEPS="runs/small runs/other"; COMPARISON=DIR takes the page
	$(if $(word 2,$(SWEEPS)),,$(error compare: give at least two sweeps, SWEEPS="DIR DIR"))
	set -- $(SWEEPS); first=$$1; second=$$2; shift 2; for more; do shift; set -- "$$@" --more+="$$more"; done; \
	$(VENV)/bin/python -m attacks compare "$$first" "$$second" --output=$(call quoted,$(COMPARISON)) "$$@"

check-paths: $(RESULTS) ## classes from stored PNG flow, memory and lossless video must agree on every test stack
	$(LIGHTNING).prediction_paths --config $(CONFIG)/attack-sweep.yaml $(OTHER_DATASET) $(SWEEP_ARGS) --stores $(call quoted,$(RUN)/flow) --sweep $(call quoted,$(RUN)/attack-sweep) --data.init_args.max_clips=null --data.init_args.max_stacks=null $(PATHS_ARGS)
	$(VENV)/bin/python -m attacks report $(call quoted,$(RUN))

export-clips: $(RESULTS) ## the sweep's examples as video files, judged; EXPORT_ARGS="--clips=[…] --lpips=alexnet.pth"
	$(LIGHTNING).exported_clips export --config $(CONFIG)/attack-sweep.yaml $(OTHER_DATASET) $(SWEEP_ARGS) --sweep $(call quoted,$(RUN)/attack-sweep) --output $(call quoted,$(RUN)/clips) $(EXPORT_ARGS)

evaluate-clips: $(CLASSIFIERS) ## read the exported video files and judge them again: the same verdicts, or an error
	$(LIGHTNING).exported_clips evaluate --config $(CONFIG)/attack-sweep.yaml $(OTHER_DATASET) $(SWEEP_ARGS) --exported $(call quoted,$(RUN)/clips)

wandb-workspace: $(RESULTS) ## a saved W&B workspace of the sweep and its trainings, once their runs are online
	$(LIGHTNING).wandb_workspace $(call quoted,$(RUN)/attack-sweep) --group $(WANDB_RUN_GROUP) $(WORKSPACE_ARGS)

# Each changes only when the arguments of its step do, so that other arguments are not silently ignored.
# A dataset's YAML counts by its content.
$(RUN_TARGET)/flownet2.args: STEP_ARGS = $(FLOWNET2) $(FLOWNET2_ARGS)
$(RUN_TARGET)/classifiers.args: STEP_ARGS = $(CLASSIFIER_ARGS)
$(RUN_TARGET)/attack-sweep.args: STEP_ARGS = $(SWEEP_ARGS)
ALL_ARGS = printf '%s\n' $(call quoted,$(UCF101) $(STEP_ARGS)) $(if $(DATASET),$(call quoted,$(DATASET)) "$$(cksum < $(call quoted,$(DATASET)))")
$(RUN_TARGET)/flownet2.args $(RUN_TARGET)/classifiers.args $(RUN_TARGET)/attack-sweep.args: FORCE
	@mkdir -p $(call quoted,$(RUN)); $(ALL_ARGS) | cmp -s - $(call quoted,$@) || $(ALL_ARGS) > $(call quoted,$@)

# A process for each core; the tests of a file, which share what they make, stay together.
TESTS := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadfile
test: $(INSTALLED) ## run the tests; UCF101=DIR and FLOWNET2_ORACLE=DIR add those that need real data
	$(TESTS) -m "not slow"

test-all: $(INSTALLED) ## run the slow tests too
	$(TESTS)

bench-correlation: $(INSTALLED) ## the correlation layer beside a plain loop and, where installed, the compiled extension
	$(VENV)/bin/python tests/benchmarks/correlation.py $(BENCH_ARGS)

bench-extraction: $(INSTALLED) ## TV-L1 extraction beside a loop over cv2 (BENCH_ARGS=--algorithm=farneback), and UCF-101 at that rate
	$(VENV)/bin/python tests/benchmarks/extraction.py $(if $(UCF101),$(call quoted,$(UCF101))) $(BENCH_ARGS)

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
	rm -rf $(call quoted,$(RUN))
