#!/bin/bash
# Runs a module once on every node of this job, and lets the others go on where one fails: nodes.sh MODULE [arguments...]
set -euo pipefail
frozen=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/setup.sh
source "$frozen/slurm/setup.sh"
exec srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=0 \
  "${srun_options[@]}" "${wrap[@]}" python -m "$@"
