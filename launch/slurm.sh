#!/usr/bin/env bash
# Pretraining on the GPUs of a Slurm cluster. From the checkout, which like runs/ and prepared/ must be on a file system
# that all nodes share (options before the file go to Slurm, those after it to the program):
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --partition=NAME launch/slurm.sh \
#       --config=experiments/base.py --workdir=runs/base --config.data.corpus=text --config.data.files='corpus/*.txt'
#
# JAX's rule for Slurm is one process a GPU, so --ntasks-per-node equals --gpus-per-node; the global batch must be a
# multiple of all GPUs. The same command again continues where the last one stopped: on the signal below each run
# saves a checkpoint and ends. Not yet run on a cluster.
#SBATCH --job-name=bert_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script with sbatch}" # Slurm runs a copy of it from elsewhere
export EXTRAS=${EXTRAS:-gpu}
# shellcheck disable=SC1091
source launch/setup.sh # once, before the processes start
export JAX_COORDINATOR_ADDRESS=auto
exec srun --kill-on-bad-exit=1 python -m bert_jax.main "$@"
