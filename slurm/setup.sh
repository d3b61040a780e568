#!/bin/bash
# Sourced by every job body, which has set `frozen`: the site's environment, and the code as it was at `megatron-cpt submit`.
# env.sh may fill two lists: srun_options (Pyxis: --container-image=...) and wrap (Apptainer: apptainer exec ...).
# shellcheck disable=SC2034,SC2154
srun_options=() wrap=()
set +u # what modules and conda bring reads variables that are not set
# shellcheck source=/dev/null
source "$frozen/env.sh"
set -u
export PYTHONPATH=$frozen/code PYTHONUNBUFFERED=1 MEGATRON_CPT_LAUNCHER=$frozen/slurm/ranks.sh
