"""Everything that can go wrong, and the exit code that says so.

    StreamError                      1   a check said no: `verify` found differences, `publish` met bad lines
    ├── ConfigurationError          78   a setting, a missing program, a taken port: start again after mending it
    ├── Outage                      75   the outside world is down: nothing in the batch is at fault, start me again
    ├── GpuRequired                 99   REQUIRE_GPU=1 and no usable GPU or model server
    └── Refused                      1   a model or a store refused what it was given; splitting finds the culprit

Codes 75 and 78 are EX_TEMPFAIL and EX_CONFIG of sysexits.h; 2 is a wrong command line, 130 is Ctrl-C or SIGTERM. What
is wrong with one record is not an exception but an outcome: `stream.records.Rejected`.
"""


class StreamError(Exception):
    """The base of the tree: its text is one sentence for a person, with what to do about it."""

    exit_code = 1


class ConfigurationError(StreamError):
    """The command cannot work as configured."""

    exit_code = 78


class Outage(StreamError):
    """Something outside is down or overloaded; the same call will succeed later.

    A stage raises it for a whole batch: nothing of the batch is dead-lettered and nothing acknowledged. `cause` says in
    a word, for `stream_retries_total`, what is down.
    """

    exit_code = 75

    def __init__(self, message: str, cause: str = "other") -> None:
        super().__init__(message)
        self.cause = cause


class GpuRequired(StreamError):
    """The stage needs a GPU (or the model server on one) and there is none."""

    exit_code = 99


class Refused(StreamError):
    """A model or a store will never accept this input: retrying is useless, splitting the batch is not."""
