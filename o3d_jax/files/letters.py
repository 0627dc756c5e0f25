"""Names in files that do not say in which encoding they are written."""


def text_of(letters: bytes) -> str:
    """Returns the text in UTF-8, or else in Latin-1, in which all bytes are letters."""
    try:
        return letters.decode("utf-8")
    except UnicodeDecodeError:
        return letters.decode("latin-1")
