#!/bin/sh
# What the README says of a GPU: `make bench-gpu`, six minutes on an H200, most of them the toolbox's. It needs neither
# PyAV, W&B nor jsonargparse. SMALL=1 only shows that it runs, in a minute on a CPU.
set -eu
sweep() {
    echo "
sweep_engine.py $*"
    "${PYTHON:-python3}" -W ignore tests/benchmarks/sweep_engine.py "$@"
}

if [ "${SMALL:-}" ]; then
    tiny="--width 0.125 --size 64 64 --crop 64 --stacks 1 --epsilons 0.01 0.02"
    full=$tiny small=$tiny
else
    full="--stacks 12"
    small="--stacks 24"
fi
# shellcheck disable=SC2086
{
    sweep --full $full --precision bfloat16+TF32 --batch-size 32 --pairs-at-once 160 --retained-pairs 400 --without plain
    sweep $small --batch-size 32 --retained-pairs 2000
    sweep --limit $small --rounds 5
    sweep --precisions $small --batch-size 32
    sweep --limit --full $full --precision bfloat16+TF32 --rounds 5
}
