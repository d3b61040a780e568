#!/bin/bash
# Walks the whole line on this machine, corpus to report, then checks its records: launch/line.sh experiment=quickstart [overrides...]
set -euo pipefail
megatron-cpt run "$@"
exec megatron-cpt audit "$@"
