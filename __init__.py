"""p2pnode: train a PyTorch model together, peer to peer, without a coordinator."""
