#!/usr/bin/env bash
# Runs the Megatron tests on megatron-core 0.19.2: a second environment that borrows everything else from the first.
# Beside it lie the oldest tokenizers and sentencepiece of the stated range, in which written vocabularies must reload.
# usage: tools/other_core.sh FIRST_ENVIRONMENT SECOND_ENVIRONMENT
set -euo pipefail
first=$1 second=$2
if [[ ! -e $second/.installed ]]; then
  "$first/bin/python" -m venv "$second"
  borrowed=$("$first/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$second/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$borrowed" > "$own/borrowed.pth"
  # its metadata asks for Python 3.12 and it runs on 3.11 too; it imports triton and does not say so
  "$second/bin/pip" install --quiet --no-deps --ignore-requires-python megatron-core==0.19.2 triton
  touch "$second/.installed"
fi
OLDEST_LIBRARIES=$(realpath "$second")/oldest
export OLDEST_LIBRARIES
[[ -d $OLDEST_LIBRARIES ]] || "$second/bin/pip" install --quiet --no-deps --target "$OLDEST_LIBRARIES" tokenizers==0.22.0 sentencepiece==0.2.1
"$second/bin/python" -c 'from importlib.metadata import version; v = version("megatron-core"); print("megatron-core", v); assert v == "0.19.2", v'
exec "$second/bin/python" -m pytest -q --numprocesses="${TEST_PROCESSES:-2}" --dist=loadfile tests/unit/backend tests/unit/model tests/unit/train tests/numerics tests/integration tests/unit/vocab/test_vocab_oldest.py -m 'not real_model and not slow and not long'
