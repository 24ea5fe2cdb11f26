"""How others can reach this node."""
