"""The exceptions of this package and their exit codes.

    StreamError                      1   a check failed: `verify` found differences, `publish` found bad lines
    ├── TooManyRejected             65   nearly all records are rejected: correct their producer, then start again
    ├── ConfigurationError          78   a wrong setting, a missing program, a port in use: fix it, then start again
    ├── Outage                      75   an external system is down: no record is at fault, start the process again
    │   └── DeadlineExceeded        75   a search was not answered in the time that its caller gave it
    ├── GpuRequired                 99   REQUIRE_GPU=1 and no usable GPU or model server
    ├── InvalidRequest               2   a search that cannot be answered: correct the query, the filter or the cursor
    └── Refused                      1   a model or a store refused its input; bisecting finds the item at fault

Codes 65, 75 and 78 are EX_DATAERR, EX_TEMPFAIL and EX_CONFIG of sysexits.h; 2 is a wrong command line, 130 is Ctrl-C
or SIGTERM. A fault of one record is an outcome, not an exception: `stream.records.Rejected`.
"""

NO_PYTORCH = (
    "SPLADE needs PyTorch, which is not installed: use the image's target `cuda` or `cpu`, "
    "or install this package with its dependencies"
)


class StreamError(Exception):
    """The base class. Its message is one sentence for a person and says what to do."""

    exit_code = 1


class TooManyRejected(StreamError):
    """A worker would reject nearly all records of a partition; a restart does not help."""

    exit_code = 65


class ConfigurationError(StreamError):
    """The command cannot work as configured."""

    exit_code = 78


class Outage(StreamError):
    """An external system is down or overloaded; the same call will succeed later.

    A stage raises it for a whole batch: no record of the batch is dead-lettered or acknowledged. `cause` is one word
    for what is down, a label of `stream_retries_total`.
    """

    exit_code = 75

    def __init__(self, message: str, cause: str = "other") -> None:
        super().__init__(message)
        self.cause = cause


class DeadlineExceeded(Outage):
    """The servers have not answered within the deadline of a search; more time may suffice."""


class GpuRequired(StreamError):
    """The stage needs a GPU (or the model server on one) and there is none."""

    exit_code = 99


class InvalidRequest(StreamError):
    """Something that was asked cannot be answered, whatever the state of the servers."""

    exit_code = 2


class Refused(StreamError):
    """A model or a store will never accept this input: do not retry it, bisect the batch."""
