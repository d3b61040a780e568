#!/bin/bash
# Starts the ranks of a module on every node of this job, one torchrun a node: ranks.sh RANKS_PER_NODE MODULE [arguments...]
# megatron-cpt calls it inside a job, as MEGATRON_CPT_LAUNCHER.
set -euo pipefail
frozen=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/setup.sh
source "$frozen/slurm/setup.sh"
ranks_per_node=$1 module=$2
shift 2
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]:?scontrol named no node of this job}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # below the ephemeral range, another one for each job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / ranks_per_node))}
# since Slurm 22.05 a step does not inherit --cpus-per-task
exec srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 "${srun_options[@]}" "${wrap[@]}" \
  torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$ranks_per_node" \
  --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  -m "$module" "$@"
