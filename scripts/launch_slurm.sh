#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on hosts of a Slurm cluster, one process on each, from this project's
# folder, which all of them see, with an environment in .venv:
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch_slurm.sh \
#     --gin_file=configs/upcycle_t5_xl.gin --gin.MODEL_DIR="'runs/xl'" \
#     --gin.DENSE_CHECKPOINT="'.../checkpoint_1000000'"
#
# As an array it runs the lines of a file, which are commands of single runs:
#
#   python scripts/sweep.py experiments/01_vit_finetune --scale=base --list \
#     > runs.txt
#   sbatch --array=1-$(wc -l < runs.txt) --nodes=1 --gpus-per-node=8 \
#     scripts/launch_slurm.sh runs.txt
#
# Two minutes before the time limit every process gets SIGTERM, upon which the
# run saves and ends with exit code 75; then the job queues up again, as it does
# when it is preempted or a host fails, and goes on from its last checkpoint.
#SBATCH --job-name=upcycle
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

command=(python scripts/train.py "$@")
if [[ ${SLURM_ARRAY_TASK_ID:-} ]]; then
  # The words of a line are quoted for a shell.
  eval "command=($(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1"))"
fi
if [[ ${SLURM_GPUS_ON_NODE:-} ]]; then
  # All of a host's GPUs: under Slurm a process takes one unless it is told.
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
export PATH=$PWD/.venv/bin:$PATH

# An error of one process ends all, which would wait for it.
code=0
srun --kill-on-bad-exit=1 python scripts/supervise.py \
  "${command[@]}" --distributed=auto || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
