"""``python -m dcupgrade``."""

from dcupgrade.commands.main import main

main()
