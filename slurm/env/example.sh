#!/bin/bash
# What a job needs before Python starts. Copy it for your cluster and name it in cluster.env_file.
# module load cuda/12.8                       # where the site uses environment modules
# export NCCL_SOCKET_IFNAME=ib0               # the interface that joins the nodes
# export NCCL_IB_HCA=mlx5                     # InfiniBand adapters
# export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True   # less fragmentation at the edge of memory
# shellcheck source=/dev/null
source "${MEGATRON_CPT_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin/activate"
