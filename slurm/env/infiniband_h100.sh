#!/bin/bash
# H100 nodes on InfiniBand: all traffic of NCCL on the adapters, its start-up and gloo on the interface over them.
# shellcheck source=/dev/null
source "${MEGATRON_CPT_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin/activate"
export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5                                 # the adapters whose name begins so; an Ethernet one may need to be left out
export NCCL_IB_TIMEOUT=22                               # 4.096 us * 2^22, about 17 s: a flapping link does not end the run
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True # less fragmentation at the edge of memory
