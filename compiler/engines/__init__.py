"""Plug-ins of serving engines, one package each, installed with the extra of its name."""
