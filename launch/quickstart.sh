#!/usr/bin/env bash
# A fresh machine to a tiny BERT in about three minutes: set up, prepare the built-in corpus, pretrain, look at what it learned.
set -euo pipefail
export PIP_COMPILE=0 # Python compiles what it imports, which is little of what is installed: half of pip's time
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
workdir=${WORKDIR:-runs/quickstart}
python -m bert_jax.main --config=experiments/tiny.py --workdir="$workdir" "$@"
python -m bert_jax.lab.first_look "$workdir"
echo "curves: $workdir/plots/*.png   figures: $workdir/metrics.jsonl   checkpoints: $workdir/checkpoints"
