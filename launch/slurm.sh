#!/usr/bin/env bash
# Training on the GPUs of a Slurm cluster. From the checkout, which like runs/ and prepared/ must be on a file system
# that all nodes share (options before the file go to Slurm, those after it to the program):
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --partition=NAME launch/slurm.sh \
#       --config=experiments/base.py --workdir=runs/base --config.data.corpus=text --config.data.files='corpus/*.txt'
#   bash launch/slurm.sh --dry_run --config=experiments/base.py     # prints the commands
#
# JAX's rule for Slurm is one process per GPU, so --ntasks-per-node equals --gpus-per-node; the global batch must be a
# multiple of all GPUs. On preemption and 5 minutes before its time is over Slurm sends SIGTERM to the processes: they
# save a checkpoint and end with status 143, and the job goes back into the queue. Not yet run on a cluster.
#SBATCH --job-name=bert_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
if [ "${1:-}" != --dry_run ]; then
  cd "${SLURM_SUBMIT_DIR:?start this script with sbatch}" # Slurm runs a copy of it from elsewhere
else
  cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
fi
# shellcheck source=launch/command.sh
source launch/command.sh
export EXTRAS=${EXTRAS:-cuda13} JAX_COORDINATOR_ADDRESS=auto
# shellcheck source=launch/setup.sh
[ -n "$dry_run" ] || source launch/setup.sh # once, before the processes start

# srun must not end the other processes at once when one ends: that is a SIGTERM too, and a crash would look like a
# preemption. They end by themselves; what is left after 10 minutes hangs. Since Slurm 22.05 srun does not take
# --cpus-per-task from the job.
options=(--kill-on-bad-exit=0 --wait=600 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}")
status=0
start srun "${options[@]}" python -m bert_jax.main "$@" || status=$?
# 143 is 128 + SIGTERM. 75 says that a process, a device or a disk kept the others from going on: other nodes may do
# better, but are not tried for ever.
if [ "$status" -eq 143 ] || { [ "$status" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; }; then
  start scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
