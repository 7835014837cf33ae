"""Text from elsewhere (chain, endpoints, nodes, operators), made fit for a terminal, a log and a database. Pure."""


def one_line(text: str) -> str:
    """The text with everything that does not print, line ends included, as escapes such as `\\x1b` and `\\n`.

    A terminal would obey control characters, and a log would take a line end for the beginning of another entry.
    """
    return text if text.isprintable() else "".join(_escaped(char) for char in text)


def lines(text: str) -> str:
    """As `one_line`, with the line ends left in: for texts of our own that have several lines."""
    return "\n".join(map(one_line, text.split("\n")))


def storable(text: str) -> str:
    """The text with surrogates that stand alone as escapes such as `\\ud800`.

    JSON and file names may hold them. They have no UTF-8 form, so neither SQLite nor a response takes them.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
