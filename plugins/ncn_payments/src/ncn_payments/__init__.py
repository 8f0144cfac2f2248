"""NCN payments: chains, contracts, wallets, vouchers and settlement."""

__version__ = "0.1.0"
