"""``python -m dcupgrade``."""

from dcupgrade.cli import main

main()
