"""Extended files of both families in the oldest releases of the stated range, which `tools/other_core.sh` installs beside the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_vocab_build import build
from test_vocab_sentencepiece import folder_of, train

from megatron_cpt.record.store import read_json
from megatron_cpt.vocab import reload_script

OLDEST = os.environ.get("OLDEST_LIBRARIES", "")
VERSIONS = {"tokenizers": "0.22.0", "sentencepiece": "0.2.1"}  # the lower bounds of setup.py
READ_MODEL = (
    "import json, sys, sentencepiece; texts = json.load(open(sys.argv[2]))['texts']; "
    "model = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1]); "
    "print(json.dumps({'sentencepiece': sentencepiece.__version__, 'ids': model.encode(texts)}))"
)
pytestmark = pytest.mark.skipif(not OLDEST, reason="OLDEST_LIBRARIES names no folder with the oldest releases; make test-other-core does")


def oldest(*command: str):
    """Return what a process prints in which the oldest releases come first."""
    environment = {**os.environ, "PYTHONPATH": OLDEST}
    return json.loads(subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.parametrize("family", ["byte-level", "SentencePiece"])
def test_the_files_reload_in_the_oldest_releases_with_the_same_ids(tmp_path, base_folder, english, chinese, family):
    sources = {"law": ("domain", chinese[:8], chinese[8:]), "english": ("general", english[:-5], english[-5:])}
    if family == "SentencePiece":
        base_folder = folder_of(tmp_path / "base", train(english))
    result = build(tmp_path, base_folder, sources, **({"document_separator": "</s>"} if family == "SentencePiece" else {}))
    written, probe = result.folder / "tokenizer", result.folder / "probe.json"
    wanted = read_json(probe)["ids"]
    assert max(map(max, wanted)) >= read_json(result.folder / "vocab_layout.json")["num_base_ids"], "the probe uses new pieces"
    found = oldest(reload_script.__file__, str(written / "tokenizer.json"), str(probe))
    assert found == {"tokenizers": VERSIONS["tokenizers"], "ids": wanted}
    if family == "SentencePiece":
        found = oldest("-c", READ_MODEL, str(written / "tokenizer.model"), str(probe))
        assert found == {"sentencepiece": VERSIONS["sentencepiece"], "ids": wanted}
