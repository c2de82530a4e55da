"""The one error that users meet."""


class InputError(ValueError):
    """A user's mistake: one sentence that names the offending value and the fix."""
