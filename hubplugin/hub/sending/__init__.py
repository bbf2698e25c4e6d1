"""How files leave this machine: none with a secret in it, none twice, and again where a connection breaks.

Knows files and uploads. Knows no repo's state and no manifest.
"""
