#!/usr/bin/env bash
# A fresh machine to a tiny BERT in a few minutes: set up, prepare the built-in corpus, pretrain, fill masks, plot.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "$0")/setup.sh"
workdir=${WORKDIR:-runs/quickstart}
python -m bert_jax.main --config=experiments/tiny.py --workdir="$workdir" "$@"
python -m bert_jax.main --config=experiments/tiny.py --workdir="$workdir" --mode=evaluate "$@"
python -m bert_jax.main --config=experiments/tiny.py --workdir="$workdir" --mode=fill_mask "$@" \
  --text="The [MASK] of the list is returned." \
  --text="Return the [MASK] of the file." \
  --text="If the argument is [MASK], an exception is raised." \
  --text="This method is called [MASK] the object is created."
echo "curves: $workdir/plots/*.png   figures: $workdir/metrics.jsonl   checkpoints: $workdir/checkpoints"
