"""The errors a user can act on: one line each, with the exit code of the command line."""

from __future__ import annotations


class GlmExportError(Exception):
    """Base of every error glm-export raises on purpose.

    The message is one line: what was expected, what was found, what to do.
    """

    exit_code = 2


class ConfigError(GlmExportError):
    """``config.json`` says something no family understands, or sizes contradict each other."""


class CheckpointError(GlmExportError):
    """A weight file or tensor is missing, damaged, unsafe or of the wrong shape."""


class InputError(GlmExportError):
    """A prompt, an option or an output folder cannot be used as given."""


class NonFiniteError(GlmExportError):
    """A model's logits are no distribution: its dtype cannot hold what it computes, or its weights are damaged.

    The program or checkpoint cannot be used as it is, hence exit code 2; where two are compared and the one that is
    judged is at fault, the comparison fails (1).
    """


class ComparisonFailedError(GlmExportError):
    """Two runs were compared and differ by more than the tolerance."""

    exit_code = 1


class EnvironmentMissingError(GlmExportError):
    """This machine lacks something: a package, disk space, a device, a kernel."""

    exit_code = 3
