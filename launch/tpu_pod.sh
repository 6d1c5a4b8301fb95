#!/usr/bin/env bash
# Pretraining on a TPU VM or on all hosts of a pod slice, started from any machine with gcloud:
#
#   TPU=my-v4-32 ZONE=us-central2-b CHECKOUT=/mnt/shared/bert_jax bash launch/tpu_pod.sh \
#       --config=experiments/base.py --workdir=/mnt/shared/runs/base --config.data.prepared=/mnt/shared/prepared \
#       --config.data.corpus=text --config.data.files='/mnt/shared/corpus/*.txt'
#
# CHECKOUT, --workdir and data.prepared lie on a file system that every host has mounted (Filestore, or a bucket
# through gcsfuse). Each host keeps an environment of its own in $VENV. One process a host; the first one prepares the
# corpus. The program ends with the connection: start this in tmux; the same command again resumes. Not yet run on a pod.
set -euo pipefail
: "${TPU:?name of the TPU VM or pod slice}" "${ZONE:?its zone}" "${CHECKOUT:?folder of the checkout on the hosts}"
VENV=${VENV:-/tmp/bert_jax-venv}
program=$(printf '%q ' python -m bert_jax.main "$@")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
set -euo pipefail
cd $(printf '%q' "$CHECKOUT")
export VENV=$(printf '%q' "$VENV") EXTRAS=tpu JAX_COORDINATOR_ADDRESS=auto
source launch/setup.sh
exec $program"
