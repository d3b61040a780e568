"""Compare two training runs step by step: loss, gradient norm, learning rate and counts.

python tools/compare_loss.py runs/one runs/other                    # the same bits
python tools/compare_loss.py runs/one runs/other --tolerance 1e-5   # largest allowed |a - b| / max(|a|, |b|); counts stay exact

Exit codes: 0 they agree; 1 they differ; 2 wrong arguments; 3 a file, a step or a value is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_cpt.errors import CptError
from megatron_cpt.train.compare import compare_runs, table

EXIT_DIFFERENT = 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", type=Path, help="a run folder, or a metrics.jsonl")
    parser.add_argument("right", type=Path, help="the other one")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative; 0 (the default) asks for the same bits")
    parser.add_argument("--first-step", type=int, help="compare from this step on")
    parser.add_argument("--last-step", type=int, help="compare up to this step")
    chosen = parser.parse_args(arguments)
    try:
        differences = compare_runs(
            chosen.left, chosen.right, tolerance=chosen.tolerance, first_step=chosen.first_step, last_step=chosen.last_step
        )
    except CptError as error:
        print(f"compare_loss: {error}", file=sys.stderr)
        return error.exit_code
    print(table(differences))
    different = [each.name for each in differences if each.num_different]
    how = f"within {chosen.tolerance:g}" if chosen.tolerance else "exactly"
    print(f"different: {', '.join(different)}" if different else f"the runs agree {how} over {differences[0].num_steps} steps")
    return EXIT_DIFFERENT if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
