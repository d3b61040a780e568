"""How private data looks: one pattern for each shape, and the checksum or rule that a real one passes.

Every pattern begins at a fixed mark or at an edge and repeats within bounds, so that a text is read in time linear in its length.
Sources: ITU-T E.164; GB 11643-1999 (resident identity numbers) with ISO 7064 MOD 11-2; GB/T 2260 (provinces); NANP rules for telephone
numbers; SSA randomisation rules for SSNs; ISO/IEC 7812 (Luhn) and the card networks' ranges; the issuers' documents for tokens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

EDGE = r"(?<![0-9A-Za-z_.@+\-/=])"  # nothing before that could make it part of a longer number, name or path
END = r"(?![0-9A-Za-z_]|[.\-/=][0-9])"


class Shape(NamedTuple):
    """A pattern of one kind.

    Attributes:
        hints: the text is searched only when one of these is in it; empty: when it has a digit.
        accept: says whether a match is a real one.
    """

    kind: str
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    accept: Callable[[str], bool] = lambda found: True


def digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(number: str) -> bool:
    """Say whether a number passes the check of ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(found: str) -> bool:
    """Say whether digits are of a card network's range and length and pass the Luhn check."""
    number = digits_of(found)
    first2, first4 = int(number[:2]), int(number[:4])
    length = len(number)
    network = (
        (number[0] == "4" and length in (13, 16, 19))  # Visa
        or ((51 <= first2 <= 55 or 2221 <= first4 <= 2720) and length == 16)  # Mastercard
        or (first2 in (34, 37) and length == 15)  # American Express
        or ((first4 == 6011 or first2 == 65) and length == 16)  # Discover
        or (3528 <= first4 <= 3589 and length == 16)  # JCB
        or (first2 == 62 and 16 <= length <= 19)  # UnionPay
    )
    return network and len(set(number)) > 2 and luhn(number)


PROVINCES = frozenset("11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split())
FIRST_BIRTH_YEAR = 1900


def is_resident_id(found: str) -> bool:
    """Say whether 18 characters are a resident identity number: province, birth date and check character (ISO 7064 MOD 11-2)."""
    if found[:2] not in PROVINCES:
        return False
    try:
        born = date(int(found[6:10]), int(found[10:12]), int(found[12:14]))
    except ValueError:
        return False
    if born.year < FIRST_BIRTH_YEAR:
        return False
    remainder = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(found[:17])) % 11
    return "10X98765432"[remainder] == found[17].upper()


def is_public_ip(found: str) -> bool:
    """Say whether an address is one of the public internet; private, local and documentation addresses name nobody."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in GLOBAL_IPV6 and address.is_global
    return address.is_global and not address.is_multicast and found.count(".0") < 2


GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # the only range that is given out (IANA)


def is_email(found: str) -> bool:
    """Say whether an address has a plausible host: no example domain (RFC 2606), a top-level domain of letters, no file suffix."""
    host = found.rpartition("@")[2].lower()
    name, _, top = host.rpartition(".")
    return top.isalpha() and top not in {"test", "example", "invalid", "localhost", "local", "png", "jpg", "gif", "py"} and not (
        name.rpartition(".")[2] == "example" and top in {"com", "org", "net"}
    )  # fmt: skip


def is_international(found: str) -> bool:
    return 8 <= len(digits_of(found)) <= 15


def is_cn_mobile(found: str) -> bool:
    number = digits_of(found)[-11:]
    return len(set(number[3:])) > 2  # 13800000000 and its like are examples


def has_mixed_characters(found: str) -> bool:
    """Say whether a token's last part looks drawn at random: some digits, some letters, no long run of one character."""
    tail = found[-20:]
    return any(map(str.isdigit, tail)) and any(map(str.isalpha, tail)) and len(set(tail)) >= 8


def token(pattern: str, *hints: str, accept: Callable[[str], bool] = has_mixed_characters) -> Shape:
    return Shape("api_token", re.compile(rf"(?<![0-9A-Za-z_]){pattern}"), hints, accept)


SHAPES = (
    Shape(
        "private_key",
        re.compile(
            r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?:[0-9A-Za-z+/=:,.;()\"' \s\\]|-(?!--)){32,16384}"
            r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----|[0-9A-Za-z+/=\s\\]{64,16384})"
        ),
        ("PRIVATE KEY",),
    ),
    token(r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![0-9A-Za-z])", "AKIA", "ASIA", "ABIA", "ACCA", accept=lambda found: "EXAMPLE" not in found),
    token(r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s{0,4}(?:=>|[:=])\s{0,4}[\"']?[0-9A-Za-z/+]{40}(?![0-9A-Za-z/+=])", "aws", "AWS"),
    token(r"gh[pousr]_[0-9A-Za-z]{36,255}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    token(r"github_pat_[0-9A-Za-z]{22}_[0-9A-Za-z]{59}", "github_pat_"),
    token(r"glpat-[0-9A-Za-z_\-]{20,64}", "glpat-"),
    token(r"xox[abeoprs]-[0-9A-Za-z\-]{10,250}", "xox"),
    token(r"hooks\.slack\.com/services/T[0-9A-Z]{8,12}/B[0-9A-Z]{8,12}/[0-9A-Za-z]{24}", "hooks.slack.com"),
    token(r"AIza[0-9A-Za-z_\-]{35}(?![0-9A-Za-z_\-])", "AIza"),
    token(r"[rs]k_live_[0-9A-Za-z]{24,247}", "k_live_"),
    token(r"sk-(?:ant-[a-z0-9]{1,8}-[0-9A-Za-z_\-]{80,120}|(?:proj-|svcacct-)?[0-9A-Za-z_\-]{20,160}T3BlbkFJ[0-9A-Za-z_\-]{20,160})", "sk-"),
    token(r"hf_[A-Za-z]{34}(?![0-9A-Za-z])", "hf_", accept=lambda found: len(set(found)) >= 15),
    token(r"npm_[0-9A-Za-z]{36}(?![0-9A-Za-z])", "npm_"),
    token(r"pypi-AgE[0-9A-Za-z_\-]{50,250}", "pypi-AgE"),
    token(r"SG\.[0-9A-Za-z_\-]{22}\.[0-9A-Za-z_\-]{43}", "SG."),
    token(r"LTAI[0-9A-Za-z]{12,24}(?![0-9A-Za-z])", "LTAI"),  # Alibaba Cloud
    token(r"AKID[0-9A-Za-z]{32}(?![0-9A-Za-z])", "AKID"),  # Tencent Cloud
    token(r"eyJ[0-9A-Za-z_\-]{10,2048}\.eyJ[0-9A-Za-z_\-]{10,4096}\.[0-9A-Za-z_\-]{20,1024}", "eyJ"),  # JSON web token, RFC 7519
    Shape(
        "email",
        re.compile(r"(?<![0-9A-Za-z._%+\-])[0-9A-Za-z._%+\-]{1,64}@(?:[0-9A-Za-z\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![0-9A-Za-z\-])"),
        ("@",),
        is_email,
    ),
    Shape("resident_id_cn", re.compile(r"(?<![0-9A-Za-z_.])[1-8][0-9]{16}[0-9Xx](?![0-9A-Za-z_])"), (), is_resident_id),
    Shape("payment_card", re.compile(rf"{EDGE}[2-6](?:[0-9]{{12,18}}|[0-9]{{3}}(?:[ \-][0-9]{{4}}){{3}}|[0-9]{{3}}[ \-][0-9]{{6}}[ \-][0-9]{{5}}){END}"), (), is_card),
    Shape("ssn_us", re.compile(rf"{EDGE}(?!000|666|9)[0-9]{{3}}-(?!00)[0-9]{{2}}-(?!0000)[0-9]{{4}}{END}"), ("-",)),
    Shape(
        "phone",  # Chinese mobile numbers, with or without +86
        re.compile(r"(?<![0-9A-Za-z_.@\-/=])(?:(?:\+|00)86[ \-]?)?1[3-9][0-9](?:[0-9]{8}|([ \-])[0-9]{4}\1[0-9]{4})(?![0-9A-Za-z_]|[.\-/=][0-9])"),
        (),
        is_cn_mobile,
    ),
    Shape("phone", re.compile(rf"{EDGE}(?:\(0[1-9][0-9]{{1,2}}\) ?|0[1-9][0-9]{{1,2}}-)[2-8][0-9]{{6,7}}{END}"), ("0",)),  # Chinese fixed lines
    Shape(
        "phone",  # North America, only with separators
        re.compile(rf"{EDGE}(?:1[ .\-])?(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}([.\-]))[2-9][0-9]{{2}}(?(1)\1|[.\-])[0-9]{{4}}{END}"),
    ),
    Shape("phone", re.compile(r"(?<![0-9A-Za-z_)\]+])\+[1-9][0-9]{0,2}(?:[ \-.]?\(?[0-9]{2,4}\)?){2,5}(?![0-9A-Za-z_]|[.\-/=][0-9])"), ("+",), is_international),
    Shape("ip_address", re.compile(r"(?<![0-9A-Za-z_.\-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z_\-]|\.[0-9A-Za-z])"), (".",), is_public_ip),
    Shape("ip_address", re.compile(r"(?<![0-9A-Za-z_:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z_:])"), (":",), is_public_ip),
)  # fmt: skip
