"""The line, stage by stage: what each takes in and does. `megatron_cpt/stages.py` walks it; torch loads in children only."""
