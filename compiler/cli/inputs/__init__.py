"""Inputs of commands: options, graph files, models."""
