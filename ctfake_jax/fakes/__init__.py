"""Every way to make fakes, and the files they become."""
