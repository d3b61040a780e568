"""How private data looks: one pattern for each shape, and the checksum or rule that a real one passes (`private_checks.py`).

A text is read once for each mark or class of characters with which a shape begins, and repetitions are bounded, so that the time is
linear in the text's length. Sources: ITU-T E.164; GB 11643-1999 (resident identity numbers); NANP rules for telephone numbers; SSA
rules for social security numbers; ISO/IEC 7812 (payment cards); the issuers' documents and published scanners' rules for tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from megatron_cpt.corpus.filters.private_checks import (
    is_card,
    is_cn_mobile,
    is_email,
    is_international,
    is_public_ip,
    is_resident_id,
    looks_random,
)

# Where a number may begin and end: nothing beside it that could make it part of a longer number, name, path or expression.
EDGE = r"(?<![0-9A-Za-z_.@+\-/=])"
END = r"(?![0-9A-Za-z_]|[.\-/=][0-9])"


class Shape(NamedTuple):
    """A way in which a kind of private data is written.

    Attributes:
        pattern: matched where the shape may begin.
        prefixes: it begins at one of these; empty: inside a run of digits and separators.
        accept: says whether a match is a real one.
    """

    kind: str
    pattern: re.Pattern[str]
    prefixes: tuple[str, ...] = ()
    accept: Callable[[str], bool] = lambda found: True


def token(pattern: str, *prefixes: str, accept: Callable[[str], bool] = looks_random) -> Shape:
    return Shape("api_token", re.compile(pattern), prefixes, accept)


def number(kind: str, pattern: str, accept: Callable[[str], bool] = lambda found: True) -> Shape:
    return Shape(kind, re.compile(pattern), (), accept)


# PEM and OpenPGP, also inside string literals; where the end is missing, the lines of base64 that follow.
KEY_NAME = r"(?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
PRIVATE_KEYS = (
    Shape(
        "private_key",
        re.compile(
            rf"-----BEGIN {KEY_NAME}(?:(?:[0-9A-Za-z+/=:,.;()\"'\s\\]|-(?!--)){{32,16384}}-----END {KEY_NAME}"
            r"|[0-9A-Za-z+/=\s\\]{64,16384})"
        ),
        ("-----BEGIN ",),
    ),
)
OPENAI = r"(?:proj-|svcacct-)?[0-9A-Za-z_\-]{20,160}T3BlbkFJ[0-9A-Za-z_\-]{20,160}"
API_TOKENS = (
    token(r"A[KSBC][IC]A[A-Z2-7]{16}(?![0-9A-Za-z])", "AKIA", "ASIA", "ABIA", "ACCA", accept=lambda found: "EXAMPLE" not in found),
    token(r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s{0,4}(?:=>|[:=])\s{0,4}[\"']?[0-9A-Za-z/+]{40}(?![0-9A-Za-z/+=])", "aws", "AWS"),
    token(r"gh[pousr]_[0-9A-Za-z]{36,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    token(r"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}", "github_pat_"),
    token(r"glpat-[0-9A-Za-z_\-]{20,64}", "glpat-"),
    token(r"xox[abeoprs]-[0-9A-Za-z\-]{10,250}", "xox"),
    token(r"hooks\.slack\.com/services/T[0-9A-Z]{8,12}/B[0-9A-Z]{8,12}/[0-9A-Za-z]{24}", "hooks.slack.com"),
    token(r"AIza[0-9A-Za-z_\-]{35}(?![0-9A-Za-z_\-])", "AIza"),
    token(r"[rs]k_live_[0-9A-Za-z]{24,247}", "sk_live_", "rk_live_"),
    token(rf"sk-(?:ant-[a-z0-9]{{1,8}}-[0-9A-Za-z_\-]{{80,120}}|{OPENAI})", "sk-"),
    token(r"hf_[A-Za-z]{34}(?![0-9A-Za-z])", "hf_", accept=lambda found: len(set(found)) >= 15),
    token(r"npm_[0-9A-Za-z]{36}(?![0-9A-Za-z])", "npm_"),
    token(r"pypi-AgE[0-9A-Za-z_\-]{50,250}", "pypi-AgE"),
    token(r"SG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}", "SG."),
    token(r"LTAI[0-9A-Za-z]{12,24}(?![0-9A-Za-z])", "LTAI"),  # Alibaba Cloud
    token(r"AKID[0-9A-Za-z]{32}(?![0-9A-Za-z])", "AKID"),  # Tencent Cloud
    token(r"eyJ[0-9A-Za-z_\-]{10,512}\.eyJ[0-9A-Za-z_\-]{10,4096}\.[0-9A-Za-z_\-]{20,1024}", "eyJ"),  # JSON web token, RFC 7519
)
NUMBERS = (
    number("resident_id_cn", r"(?<![0-9A-Za-z_.])[1-8][0-9]{16}[0-9Xx](?![0-9A-Za-z_])", is_resident_id),
    number(
        "payment_card",
        rf"{EDGE}[2-6](?:[0-9]{{12,18}}|[0-9]{{3}}(?:[ \-][0-9]{{4}}){{3}}|[0-9]{{3}}[ \-][0-9]{{6}}[ \-][0-9]{{5}}){END}",
        is_card,
    ),
    number("ssn_us", rf"{EDGE}(?!000|666|9)[0-9]{{3}}-(?!00)[0-9]{{2}}-(?!0000)[0-9]{{4}}{END}"),
    # Chinese mobile numbers, with or without +86, and fixed lines
    number("phone", rf"{EDGE}(?:(?:\+|00)86[ \-]?)?1[3-9][0-9](?:[0-9]{{8}}|([ \-])[0-9]{{4}}\1[0-9]{{4}}){END}", is_cn_mobile),
    number("phone", rf"{EDGE}(?:\(0[1-9][0-9]{{1,2}}\) ?|0[1-9][0-9]{{1,2}}-)[2-8][0-9]{{6,7}}{END}"),
    # North America, only with separators
    number(
        "phone",
        rf"{EDGE}(?:1[ .\-])?(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}([.\-]))[2-9][0-9]{{2}}(?(1)\1|[.\-])[0-9]{{4}}{END}",
    ),
    number(
        "phone",
        r"(?<![0-9A-Za-z_)\]+])\+[1-9][0-9]{0,2}(?:[ \-.]?\(?[0-9]{2,4}\)?){2,5}(?![0-9A-Za-z_]|[.\-/=][0-9])",
        is_international,
    ),
    number("ip_address", r"(?<![0-9A-Za-z_.\-])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_\-]|\.[0-9A-Za-z])", is_public_ip),
)
# A run of digits and separators of eight characters or more: no number above is shorter.
NUMBER_RUN = re.compile(r"[0-9][0-9 .()\-]{6,}[0-9Xx]")
BEFORE_RUN = 2  # a number may begin with "+" or "(" before its first digit
AFTER_RUN = 2  # what `END` looks at

# The host behind an "@", and what may stand before one.
EMAIL_AT = re.compile(r"@(?=[0-9A-Za-z])")
EMAIL_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
EMAIL_NAME_CHARS = 64  # RFC 5321, section 4.5.3.1.1
EMAIL_HOST = re.compile(r"(?:[0-9A-Za-z\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![0-9A-Za-z\-])")
EMAIL_ACCEPT = is_email
# IPv6 begins with 2 or 3; the pair of colons that every address has is looked for first, as few texts have one.
IPV6_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
IPV6 = re.compile(r"[23](?<![0-9A-Za-z_:.][23])[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z_:])")
IPV6_ACCEPT = is_public_ip
