"""NCN registry: who is there, in signed records that registries pass on over libp2p."""

__version__ = "0.1.0"
