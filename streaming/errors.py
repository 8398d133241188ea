"""Errors of the streaming package.

StreamingError
|- AudioFormatError    audio we cannot take; `code` says why (`unsupported_rate`, `bad_request`)
|- BufferFullError     pushed speech is ahead of its buffer; wait for `resume`
|- SessionClosedError  the session has ended; open another
|- EngineError         the model's process cannot serve; the text is its own reason
|   `- RefusedError    the model refused this session's portrait or prompt; send another
`- MediaFileError      a sound file cannot be read or an MP4 cannot be written
"""


class StreamingError(Exception):
    """Base of all streaming errors; its text is one sentence that says what to do."""

    code = "internal"


class AudioFormatError(StreamingError):
    """Send audio of another form; the text names what is wrong with this one.

    Args:
        message: one sentence.
        code: stable code for the client.
    """

    def __init__(self, message: str, *, code: str = "bad_request") -> None:
        super().__init__(message)
        self.code = code


class BufferFullError(StreamingError):
    """Wait for the `resume` event before pushing more."""

    code = "rate_limited"


class SessionClosedError(StreamingError):
    """Open another session."""

    code = "not_live"


class EngineError(StreamingError):
    """Follow the remedy in the text, then start the server again."""

    code = "engine_down"


class RefusedError(EngineError):
    """Send another portrait or prompt."""

    code = "bad_request"


class MediaFileError(StreamingError):
    """Check the named file."""

    code = "bad_request"
