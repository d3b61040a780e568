"""The byte alphabet of GPT-2 style tokenizers: every byte has a printable character, so pieces are written as text in a file."""

from __future__ import annotations

# Bytes that are printable in Latin-1 stand for themselves; the others are shifted to U+0100 and up, in order.
_KEPT = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SHIFTED = [byte for byte in range(256) if byte not in set(_KEPT)]
CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _KEPT} | {byte: chr(0x100 + place) for place, byte in enumerate(_SHIFTED)}
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def piece_bytes(piece: str) -> bytes | None:
    """Return the bytes that a piece stands for, or None when it is not written in the byte alphabet (a special token)."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in piece)
    except KeyError:
        return None


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def readable(data: bytes) -> str:
    """Return a piece as text, or as hex when it is a fragment of a character."""
    return data.decode("utf-8") if is_utf8(data) else f"0x{data.hex()}"
