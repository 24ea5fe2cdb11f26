"""Who implements p2pnode from the docs alone must find the bytes that the tests use."""

from pathlib import Path

import pytest
from golden import FOLDER, golden

DOCS = Path(__file__).parent.parent / "docs" / "protocol"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.hex")))
def test_every_vector_stands_in_the_protocol_docs(name: str) -> None:
    """Each vector's hex is in a page of docs/protocol, white space aside."""
    pages = ["".join(page.read_text().split()) for page in DOCS.glob("*.md")]
    assert any(golden(name).hex() in page for page in pages), f"{name}.hex is in no page"
