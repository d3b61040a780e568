#!/bin/bash
# One node of a training run without a scheduler; start it once on every node, with the same plan on a shared disk:
#   launch/multi_node.sh NODE_RANK NUM_NODES FIRST_NODE RANKS_PER_NODE runs/NAME/plan/plan.yaml
set -euo pipefail
if (($# != 5)); then
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
fi
exec torchrun --node-rank="$1" --nnodes="$2" --master-addr="$3" --master-port="${MASTER_PORT:-29400}" --nproc-per-node="$4" \
  -m megatron_cpt.train plan="$5"
