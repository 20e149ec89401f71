"""What every room uses: collectives, atomic files, hashing, names."""
