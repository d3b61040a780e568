#!/bin/bash
# A site with environment modules and Apptainer: every step runs in the image, started from a small environment without torch.
module load apptainer
# shellcheck source=/dev/null
source "${MEGATRON_CPT_VENV:-$SLURM_SUBMIT_DIR/.venv-login}/bin/activate"
# shellcheck disable=SC2034  # read by slurm/setup.sh
wrap=(apptainer exec --nv --bind "$SLURM_SUBMIT_DIR" "${MEGATRON_CPT_IMAGE:?a .sif file with this package installed}")
export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
