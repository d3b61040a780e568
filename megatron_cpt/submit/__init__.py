"""The line as Slurm jobs: argument lists built by pure functions, and the one place that calls sbatch."""
