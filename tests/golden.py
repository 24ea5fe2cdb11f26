"""Golden bytes: tests/vectors/*.hex, the same hex that stands in docs/protocol."""

from pathlib import Path

FOLDER = Path(__file__).parent / "vectors"


def golden(name: str) -> bytes:
    """The bytes of one vector; the file is hex, with white space anywhere."""
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text())
