#!/bin/bash
# Trains a plan by hand inside an allocation, one torchrun a node, without requeue or preflight:
#   salloc --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --gpus-per-node=8
#   launch/multi_node_slurm.sh RANKS_PER_NODE runs/NAME/plan/plan.yaml
set -euo pipefail
if (($# != 2)) || [[ -z ${SLURM_JOB_NODELIST:-} ]]; then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
exec srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$1}" --kill-on-bad-exit=1 \
  torchrun --nnodes="${#nodes[@]}" --nproc-per-node="$1" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-endpoint="${nodes[0]:?scontrol named no node}:$((20000 + SLURM_JOB_ID % 10000))" -m megatron_cpt.train plan="$2"
