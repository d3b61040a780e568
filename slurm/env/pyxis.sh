#!/bin/bash
# Slurm with Pyxis and enroot: every step runs in the image. The commands that start steps stay outside of it, where srun and scontrol
# are: MEGATRON_CPT_VENV is a small environment for them, of this package without torch.
# shellcheck source=/dev/null
source "${MEGATRON_CPT_VENV:-$SLURM_SUBMIT_DIR/.venv-login}/bin/activate"
# shellcheck disable=SC2034  # read by slurm/setup.sh
srun_options=(
  --container-image="${MEGATRON_CPT_IMAGE:?a .sqsh file with this package installed}"
  --container-mounts="$SLURM_SUBMIT_DIR:$SLURM_SUBMIT_DIR,${TMPDIR:-/tmp}:/tmp"
  --container-workdir="$SLURM_SUBMIT_DIR"
  --no-container-mount-home
)
