"""A vocabulary is used only when it is the one that was proven, and the installed library reads it as it was read then."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from vocab_folders import TEXTS, make_vocab

from megatron_cpt.errors import CptError, DataError
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import Check, Drift, check_vocab, probe_of, write_contract


@pytest.fixture
def folder(tmp_path):
    make_vocab(tmp_path / "vocab")
    return tmp_path / "vocab"


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_proven_vocabulary_gives_its_layout(tmp_path):
    layout = make_vocab(tmp_path / "vocab")
    assert check_vocab(tmp_path / "vocab") == layout == check_vocab(tmp_path / "vocab", expected=layout)


@pytest.mark.parametrize("name", ["contract.json", "probe.json", "vocab_layout.json", "tokenizer/tokenizer.json"])
def test_a_missing_or_damaged_file_is_refused(folder, name):
    kept = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(CptError):
        check_vocab(folder)
    (folder / name).write_bytes(kept[:-20])
    with pytest.raises(CptError):
        check_vocab(folder)


def test_a_clause_that_does_not_hold_is_refused_by_name(folder):
    edit(folder / "contract.json", lambda data: data["checks"][0].update(holds=False, detail="3 fail"))
    with pytest.raises(DataError, match="a clause: 3 fail"):
        check_vocab(folder)


def test_a_contract_without_clauses_or_with_more_drift_than_it_allows_is_refused(folder):
    edit(folder / "contract.json", lambda data: data["drift"].update(num_changed=1))
    with pytest.raises(DataError, match="1 of 10 documents"):
        check_vocab(folder)
    edit(folder / "contract.json", lambda data: data.update(checks=[]))
    with pytest.raises(DataError, match="no clause"):
        check_vocab(folder)


def test_the_contract_of_another_vocabulary_is_refused(folder):
    edit(folder / "vocab_layout.json", lambda data: data.update(num_padded_rows=512))
    with pytest.raises(DataError, match="another vocabulary"):
        check_vocab(folder)


@pytest.mark.parametrize("key", ["num_base_ids", "num_ids", "num_padded_rows", "end_of_document_id"])
def test_a_plan_for_another_layout_is_refused_with_the_field_named(folder, key):
    layout = check_vocab(folder)
    with pytest.raises(DataError, match=f"{key} {getattr(layout, key) + 1}"):
        check_vocab(folder, expected=dataclasses.replace(layout, **{key: getattr(layout, key) + 1}))


def test_another_tokenizer_under_the_same_name_is_refused(folder):
    edit(folder / "tokenizer" / "tokenizer.json", lambda data: data.update(version="1.0 "))
    with pytest.raises(DataError, match="proven with"):
        check_vocab(folder)


def test_other_ids_for_the_same_file_are_refused_with_both_versions(folder, tmp_path):
    """What another library release would do: the probe was recorded with other ids than the installed library gives now."""
    layout = check_vocab(folder)
    probe = probe_of(load_tokenizer(folder / "tokenizer" / "tokenizer.json"), TEXTS)
    ids = [list(each) for each in probe.ids]
    ids[1][2] = 7
    write_contract(folder, layout, probe=dataclasses.replace(probe, ids=ids), drift=Drift(10, 0, 0.0), checks=[Check("a clause", True, 3)])
    edit(folder / "contract.json", lambda data: data["libraries"].update(tokenizers="0.1.0"))
    with pytest.raises(DataError, match=r"from token 2 on, with tokenizers 0\.2[\s\S]*tokenizers 0\.1\.0"):
        check_vocab(folder)


def test_an_id_without_a_row_is_refused_with_its_token(folder):
    """Bug D11: on a GPU this is a device assert far from its cause."""
    path = folder / "tokenizer" / "tokenizer.json"
    layout = dataclasses.replace(check_vocab(folder), num_base_ids=250, num_ids=250)
    (folder / "vocab_layout.json").write_text(json.dumps(dataclasses.asdict(layout)))
    probe = probe_of(load_tokenizer(path), TEXTS)
    write_contract(folder, layout, probe=probe, drift=Drift(10, 0, 0.0), checks=[Check("a clause", True, 3)])
    with pytest.raises(DataError, match=r"no row for[\s\S]*tokenizer.json[\s\S]*id 255"):
        check_vocab(folder)


def test_a_folder_moved_elsewhere_is_the_same_vocabulary(folder, tmp_path):
    shutil.move(folder, tmp_path / "moved")
    check_vocab(tmp_path / "moved")
