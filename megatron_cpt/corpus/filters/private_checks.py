"""Which of the strings that look like private data are: checksums, number plans and ranges."""

from __future__ import annotations

import ipaddress
from datetime import date

# First two digits of GB/T 2260 codes: the provinces, Taiwan, Hong Kong, Macao, and 83 for residence permits of Taiwan residents.
PROVINCES = frozenset({
    *range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83,
})  # fmt: skip
FIRST_BIRTH_YEAR = 1900
# Country codes in use (ITU-T E.164, list of assigned codes).
COUNTRY_CODES = frozenset(map(str, {
    1, 7, 20, 27, *range(30, 35), 36, 39, 40, 41, *range(43, 50), *range(51, 59), *range(60, 67), 81, 82, 84, 86, *range(90, 96), 98,
    *range(211, 214), 216, 218, *range(220, 270), 290, 291, *range(297, 300), *range(350, 360), *range(370, 390), 420, 421, 423,
    *range(500, 510), *range(590, 600), 670, *range(672, 693), 850, *range(852, 857), 880, 886, *range(960, 969), *range(970, 978),
    *range(992, 997), 998,
}))  # fmt: skip
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # the only range that is given out (IANA)
EXAMPLE_TOPS = frozenset({"test", "example", "invalid", "localhost", "local"})  # RFC 2606 and 6762
FILE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "py", "js", "css", "html"})  # icon@2x.png


def digits_of(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(digits: str) -> bool:
    """Say whether a number passes the check of ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(found: str) -> bool:
    """Say whether digits are of a card network's range and length and pass the Luhn check."""
    digits = digits_of(found)
    first2, first4, length = int(digits[:2]), int(digits[:4]), len(digits)
    network = (
        (digits[0] == "4" and length in (13, 16, 19))  # Visa
        or ((51 <= first2 <= 55 or 2221 <= first4 <= 2720) and length == 16)  # Mastercard
        or (first2 in (34, 37) and length == 15)  # American Express
        or ((first4 == 6011 or first2 == 65) and length == 16)  # Discover
        or (3528 <= first4 <= 3589 and length == 16)  # JCB
        or (first2 == 62 and 16 <= length <= 19)  # UnionPay
    )
    return network and len(set(digits)) > 1 and luhn(digits)


def is_resident_id(found: str) -> bool:
    """Say whether 18 characters are a resident identity number: province, birth date and check character (ISO 7064 MOD 11-2)."""
    if int(found[:2]) not in PROVINCES:
        return False
    try:
        born = date(int(found[6:10]), int(found[10:12]), int(found[12:14]))
    except ValueError:
        return False
    remainder = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(found[:17])) % 11
    return born.year >= FIRST_BIRTH_YEAR and "10X98765432"[remainder] == found[17].upper()


def is_public_ip(found: str) -> bool:
    """Say whether an address is one of the public internet; private, local and documentation addresses name nobody.

    Four numbers of which three are below ten are taken for the number of a version or a section.
    """
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in GLOBAL_IPV6 and address.is_global and found.count(":") - found.count("::") >= 3
    return address.is_global and not address.is_multicast and sum(len(part) > 1 for part in found.split(".")) >= 2


def is_email(found: str) -> bool:
    """Say whether an address has a plausible host: neither of the example domains nor a file's name."""
    name, _, top = found.rpartition("@")[2].lower().rpartition(".")
    example = name.rpartition(".")[2] == "example" and top in {"com", "org", "net"}
    return top not in EXAMPLE_TOPS and top not in FILE_SUFFIXES and not example


def is_international(found: str) -> bool:
    """Say whether a number behind "+" has a country code in use and a length of E.164; within North America, an area code."""
    digits = digits_of(found)
    if not 8 <= len(digits) <= 15 or not any(digits[:size] in COUNTRY_CODES for size in (1, 2, 3)):
        return False
    return digits[0] != "1" or (len(digits) == 11 and digits[1] not in "01" and digits[4] not in "01")


def is_cn_mobile(found: str) -> bool:
    """Say whether a mobile number is not one like 13800000000, which stands for any."""
    return len(set(digits_of(found)[-8:])) > 2


def looks_random(found: str) -> bool:
    """Say whether a token's end looks drawn at random: digits and letters, eight different characters among the last twenty."""
    tail = found[-20:]
    return any(map(str.isdigit, tail)) and any(map(str.isalpha, tail)) and len(set(tail)) >= 8
