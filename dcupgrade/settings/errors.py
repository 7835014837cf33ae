"""The error of settings that cannot be used."""

from dcupgrade.errors import DcupgradeError


class SettingsError(DcupgradeError):
    """The settings cannot be used; `mistakes` holds every one of them, each naming its key."""

    def __init__(self, mistakes: list[str], *, path: str, code: str = "SETTINGS_INVALID") -> None:
        self.mistakes = mistakes
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        readable = code == "SETTINGS_INVALID"
        super().__init__(
            code=code,
            what=f"settings file {path}",
            why=f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}:{listed}\n" if readable else mistakes[0],
            action="Correct them all, then try `dcupgrade config validate`."
            if readable
            else "Correct that line; `dcupgrade config example` prints a whole file."
            if "(at " in mistakes[0]
            else "Name the right file with --config or DCUPGRADE_CONFIG; `dcupgrade init` makes one.",
        )
