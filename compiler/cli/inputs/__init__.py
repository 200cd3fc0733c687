"""What commands are given: options, graph files, models."""
