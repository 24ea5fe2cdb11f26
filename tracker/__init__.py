"""Who is in the swarm."""
