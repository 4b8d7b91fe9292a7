"""What the repository shows and the package does not install."""
