"""Programs of bundled models (``worker/executor.py`` says what those are).

Each is copied into its model's folder, where its hash becomes a part of the model; nothing here imports them.
"""
