"""`python -m hubplugin`."""

from hubplugin.cli import main

main()
