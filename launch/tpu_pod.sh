#!/usr/bin/env bash
# Training on a TPU VM, on all hosts of a slice, or on several slices, started from any machine with gcloud:
#
#   TPU=my-v4-32 ZONE=us-central2-b CHECKOUT=/mnt/shared/bert_jax bash launch/tpu_pod.sh \
#       --config=experiments/base.py --workdir=/mnt/shared/runs/base --config.data.prepared=/mnt/shared/prepared \
#       --config.data.corpus=text --config.data.files='/mnt/shared/corpus/*.txt'
#   TPU=… ZONE=… CHECKOUT=… bash launch/tpu_pod.sh --dry_run --config=experiments/base.py     # prints the commands
#
# Run `ssh-add ~/.ssh/google_compute_engine` first, so that gcloud reaches all hosts at once. For multislice, TPU has
# the names of all slices of one queued resource, with commas: TPU=my-0,my-1.
# CHECKOUT, --workdir and data.prepared lie on a file system that every host has mounted (Filestore, or a bucket
# through gcsfuse). Each host keeps an environment of its own in $VENV. One process per host; the first one prepares the
# corpus. The program ends with the connection: start this in tmux; the same command again resumes. Not yet run on a
# pod.
set -euo pipefail
# shellcheck source=launch/command.sh
source "$(dirname "${BASH_SOURCE[0]}")/command.sh"
: "${TPU:?name of the TPU VM or slice}" "${ZONE:?its zone}" "${CHECKOUT:?folder of the checkout on the hosts}"
on_host="cd $(printf '%q' "$CHECKOUT") && export VENV=$(printf '%q' "${VENV:-/tmp/bert_jax-venv}") EXTRAS=tpu"
on_host+=" JAX_COORDINATOR_ADDRESS=auto && source launch/setup.sh && exec $(printf '%q ' python -m bert_jax.main "$@")"

slices=()
trap 'kill "${slices[@]}" 2>/dev/null' INT TERM
for name in ${TPU//,/ }; do
  start gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker=all --command="$on_host" &
  slices+=($!)
done
status=0
for slice in "${slices[@]}"; do
  wait "$slice" || status=$?
done
exit "$status"
