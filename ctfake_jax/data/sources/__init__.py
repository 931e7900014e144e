"""Where images come from: each kind of file or simulation as a `types.Source`."""
