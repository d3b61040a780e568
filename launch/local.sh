#!/bin/bash
# Trains on this machine, earlier stages included: launch/local.sh experiment=quickstart [overrides...]
set -euo pipefail
exec megatron-cpt run --until train "$@"
