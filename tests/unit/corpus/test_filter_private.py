"""Private data and secrets: what is found, what is not, and that nothing found gets out. Numbers come from the issuers' documents."""

from __future__ import annotations

import time

import pytest
from filter_texts import python_texts, statutes
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.filter_schema import FilterConfig, PrivateDataConfig
from megatron_cpt.corpus.filters import TextFilters
from megatron_cpt.corpus.filters.private import MASKS, PrivateData

MASKING = PrivateData(PrivateDataConfig(**dict.fromkeys(MASKS, "mask")))
RANDOM = "x7Kq2ZbR9mTw4LcV8nYd3HsF6jGp1QaU5eXo"  # 36 characters that name nothing
# Tokens are put together here, so that scanners of this repository do not take them for real ones.
FOUND = [
    ("email", "jane.doe+cpt@mail.uni-jena.de"),
    ("phone", "13912345678"),
    ("phone", "+86 139-1234-5678"),
    ("phone", "010-62751234"),
    ("phone", "(212) 736-5000"),
    ("phone", "212-736-5000"),
    ("phone", "+44 20 7946 0958"),  # Ofcom's range for drama
    ("resident_id_cn", "11010519491231002X"),  # the example of GB 11643-1999
    ("ssn_us", "536-90-4399"),
    ("payment_card", "4111 1111 1111 1111"),  # the networks' test numbers
    ("payment_card", "378282246310005"),
    ("payment_card", "5555555555554444"),
    ("payment_card", "3530111333300000"),
    ("ip_address", "93.184.216.34"),
    ("ip_address", "2606:2800:220:1:248:1893:25c8:1946"),
    ("private_key", "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA" + RANDOM * 3 + "\n-----END RSA " + "PRIVATE KEY-----"),
    ("api_token", "AKIA" + "J2Y7QPL4KZ3MWX5T"),
    ("api_token", "gh" + "p_" + RANDOM),
    ("api_token", "github" + "_pat_" + RANDOM[:22] + "_" + RANDOM + RANDOM[:23]),
    ("api_token", "glpat" + "-" + RANDOM[:20]),
    ("api_token", "xo" + "xb-123456789012-" + RANDOM[:24]),
    ("api_token", "AI" + "za" + RANDOM[:35]),
    ("api_token", "sk" + "_live_" + RANDOM[:24]),
    ("api_token", "npm" + "_" + RANDOM),
    ("api_token", "LTAI" + RANDOM[:20]),
    ("api_token", "eyJ" + RANDOM + ".eyJ" + RANDOM + "." + RANDOM),
]
LEFT = [
    "第二百三十四条 2023年12月29日第十四届全国人民代表大会常务委员会第七次会议修订",
    "主席令第13号 GB 11643-1999 ISBN 978-7-5118-1234-5 国发〔2015〕12345号",
    "440524188001010015",  # a wrong check character
    "110105194913310026",  # no such date
    "4111 1111 1111 1112",  # fails the Luhn check
    "0.4111111111111111 1411111111111111e5 0x4111111111111111 4111111111111111.5",
    "1.2.3.4 v10.12.1.2 section 3.1.15.1 192.168.17.23 127.0.0.1 203.0.113.195",
    "2001-02-03 04:05:06 1234:5678 ::1 fe80::1 a[2::3] x = {2001: 3}",
    "icon@2x.png @property def f(self): user@localhost someone@example.com 3@4",
    "+4294967296 n+10000000 1e+12345678 13800000000 1609459200 20240131",
    "000-12-3456 666-12-3456 900-12-3456 123-45-67890",
    "sk-learn task-list AKIAIOSFODNN7EXAMPLE hf_hub_download eyJhbGciOi",
    "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAJ\n-----END PUBLIC KEY-----",
]


@pytest.mark.parametrize(("kind", "value"), FOUND)
@pytest.mark.parametrize("around", ["{}", "见{}。", '"{}",', "see {} now", "key={}\n"])
def test_what_is_private_is_masked_whole(kind: str, value: str, around: str) -> None:
    if around.startswith("key="):
        around = "key: {}\n" if kind != "api_token" else around
    found = MASKING(around.format(value))
    assert found.counts == {kind: 1}
    assert found.text == around.format(MASKS[kind])


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_private_is_left(text: str) -> None:
    assert MASKING(text) == (text, {}, None)


def test_statutes_hold_nothing_private() -> None:
    for text in statutes():
        assert MASKING(text).counts == {}


def test_python_source_is_hardly_ever_taken_for_numbers_of_persons() -> None:
    # 6.6 MB of the standard library: its mail addresses are real ones; 13577625587 is part of a table in the module `random`'s tests alone
    found: dict[str, int] = {}
    for text in python_texts():
        for kind, number in MASKING(text).counts.items():
            found[kind] = found.get(kind, 0) + number
    assert set(found) <= {"email", "ip_address", "phone"}
    assert found.get("phone", 0) <= 2


def test_a_drop_says_the_kind_and_never_the_value() -> None:
    filters = TextFilters(FilterConfig(private=PrivateDataConfig(private_key="drop", email="mask", phone="count")), language="en")
    key = FOUND[15][1]
    verdict = filters(f"Write to jane@uni-jena.de or 13912345678.\n{key}\n")
    assert verdict.reason == "private_data"
    assert verdict.detail == "private_key: 1 found"
    assert verdict.counts == {"email": 1, "phone": 1, "private_key": 1}
    assert "jane" not in repr(verdict)
    assert "13912345678" in filters("Call 13912345678.").text  # counted alone


@settings(deadline=None)  # other work on the machine is no failure
@given(
    parts=st.lists(st.one_of(st.sampled_from([value for _, value in FOUND]), st.text(max_size=5), st.sampled_from("@.-+ 0123")), max_size=8)
)
def test_masking_twice_is_masking_once(parts: list[str]) -> None:
    once = MASKING("".join(parts)).text
    assert MASKING(once).text == once


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "a.", "@", "a@", "a@a.", "-----BEGIN PRIVATE KEY-----", "-----BEGIN AAAAAAAAAAAA ", "-eyJ", "eyJaaaaaaaaaa.", "+1 ",
     "1-", "1.", "12 ", "(212) ", "0123-", "2001:", "2001::", "sk-", "-sk-ant-a-", "xox", "AKIA", "aws_secret_key ", "1234 ", "+"],
)  # fmt: skip
def test_a_hostile_line_of_a_megabyte_takes_linear_time(unit: str) -> None:
    # A quadratic pattern takes hours on such a line; the slowest here takes half a second of CPU time.
    started = time.process_time()
    MASKING(unit * (1_000_000 // len(unit)))
    assert time.process_time() - started < 8
