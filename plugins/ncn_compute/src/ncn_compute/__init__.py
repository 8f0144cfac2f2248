"""NCN compute node: models in a jail, answers in a signed hash chain."""

__version__ = "0.1.0"
