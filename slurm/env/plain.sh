#!/bin/bash
# A plain cluster: a virtual environment on the shared disk, Ethernet between the nodes. Copy it and name it in cluster.env_file.
# shellcheck source=/dev/null
source "${MEGATRON_CPT_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin/activate"
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0   # the interface that joins the nodes, where there are several
