"""What a command runs, one file or folder each."""
