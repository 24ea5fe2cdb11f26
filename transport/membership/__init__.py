"""Private swarms: who is a member, and what only members can read."""
