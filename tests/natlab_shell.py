"""A shell in a laboratory of NATs, to try things by hand: `make lab`, docs/howto/nat-lab.md."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import natlab
from natlab import KINDS, Host, NatLab, Router

# `on` is all that one needs: a program on one of the machines. The node's own command is at hand.
RC = """
on() {{ local machine=$1; shift; ip netns exec {prefix}$machine "$@"; }}
export PATH={commands}:$PATH
PS1='natlab$ '
"""


def build(lab: NatLab) -> None:
    """Public machines, a laptop behind each kind of router, and two people who share one."""
    lab.public("tracker")
    lab.public("server")
    for kind in KINDS:
        lab.home(kind, kind).host(f"at-{kind}")
    shared = lab.home("port-restricted", "shared")
    shared.host("alice")
    shared.host("bob")
    lab.home("port-restricted", "no-udp", udp=False).host("at-no-udp")
    if not natlab.lacking("turnserver"):
        lab.stun("stun")


def table(lab: NatLab) -> str:
    """The machines, their addresses, and what they are."""
    rows = []
    for machine in lab.machines:
        if isinstance(machine, Router):
            rows.append(f"  {machine.name:20} {machine.address:16} router, {machine.kind}")
        elif isinstance(machine, Host):
            rows.append(f"  {machine.name:20} {machine.address:16} {machine.place}")
    return "\n".join(rows)


def shell(lab: NatLab) -> int:
    """Bash with `on`, until it ends: its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        rc = Path(folder) / "rc"
        rc.write_text(RC.format(prefix=lab.prefix, commands=Path(sys.executable).parent))
        return subprocess.call(["bash", "--noprofile", "--rcfile", str(rc), "-i"])


def main() -> int:
    """The laboratory for as long as the shell is open."""
    if reason := natlab.missing():
        print(f"there can be no laboratory here: {reason}", file=sys.stderr)
        return 1
    with NatLab() as lab:
        build(lab)
        print(table(lab))
        print("\non MACHINE COMMAND … runs a command there; exit removes everything")
        return shell(lab)


if __name__ == "__main__":
    sys.exit(main())
