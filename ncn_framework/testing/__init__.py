"""The plugin author's kit.

- ``plugin``: pytest fixtures, there as soon as ncn-framework is installed: ``make_node``, ``ncn_sources``,
  ``signer``, ``manual_clock``.
- ``fakes``: manifests, requests and records of any shape, a clock, and plugins that answer every hook.
- ``funds``: payments without a chain.
- ``walks``: one request through plugins from memory, with a transcript of what was called and released.
- ``conformance``: ``check_plugin``, ``check_runtime``, ``check_router``; each failure says what the contract is.

Nothing is imported here, so that the fixtures cost nothing in projects that do not use them.
"""
