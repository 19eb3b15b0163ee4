"""The one exception that stylenb raises on purpose."""


class StylenbError(ValueError):
    """Something the caller can mend; its text is one sentence that says what to do."""
