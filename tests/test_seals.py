"""node/seals.py: which keys a node has now, and for whom its models are."""

from __future__ import annotations

from pathlib import Path

import pytest
from sealing import OLD, SECRETS, Member

from lab import identity
from p2pnode.node.errors import ConfigError
from p2pnode.node.seals import Seals, read_recipients
from p2pnode.transport.membership.hpke import KemPrivate

ME, ALICE, BOB = (identity(number).peer_id for number in (1, 2, 3))
KEYS = KemPrivate.generate().public


def test_all_members_unless_told_otherwise() -> None:
    """The keyring has the secrets of the moment, and no audience."""
    member = Member(OLD)
    seals = Seals(ME, member)
    assert seals.keyring().secrets.newest == 1
    assert not seals.know(ALICE, KEYS)
    member.secrets = SECRETS
    assert seals.keyring().secrets.newest == 2
    assert seals.keyring().audience is None


def test_recipients_are_those_that_are_known() -> None:
    """Until a recipient's keys are here models are for the others: never for all members."""
    seals = Seals(ME, Member(OLD), (ALICE, BOB))
    assert seals.keyring().recipients == (ME,)
    assert seals.know(ALICE, KEYS)
    assert seals.keyring().recipients == tuple(sorted((ME, ALICE)))
    assert not seals.know(ALICE, KEYS)
    assert not seals.know(identity(9).peer_id, KEYS), "a member that isn't a recipient"


def test_who_is_dropped_opens_no_later_model() -> None:
    """With other recipients there is another secret."""
    seals = Seals(ME, Member(OLD), (ALICE, BOB))
    seals.know(ALICE, KEYS)
    before = seals.keyring().audience
    assert seals.forget(ALICE)
    after = seals.keyring().audience
    assert before is not None and after is not None
    assert before.secret != after.secret
    assert after.recipients == (ME,)
    assert not seals.forget(ALICE)
    assert not seals.forget(ME)


def test_a_list_of_recipients(tmp_path: Path) -> None:
    """One peer ID a line; comments and empty lines are skipped, repeated ones count once."""
    path = tmp_path / "who"
    path.write_text(f"# the team\n{ALICE}  # Alice\n\n{BOB}\n{ALICE}\n")
    assert read_recipients(path) == (ALICE, BOB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nobody\n", "names 0 peers; write 1 to 63"),
        ("\n".join(identity(n).peer_id for n in range(1, 66)), "names 65 peers"),
        (f"{ALICE}\nalice\n", "who:2: "),
        ("\ud800", "isn't a text file"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    """Each says the file, and the line where one is wrong."""
    path = tmp_path / "who"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=message):
        read_recipients(path)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(ConfigError, match=r"--recipients: cannot read .*none: No such file"):
        read_recipients(tmp_path / "none")
