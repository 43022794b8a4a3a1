"""The one exception that means: a config, a data set or a checkpoint has to be changed."""


class LocalLearningError(ValueError):
    """Something the user wrote can't be trained; the message is one line and says how to fix it.

    The command-line tools print it without a traceback and exit with status 1. Anything else that
    escapes them is a defect of this package.

    Example:
        >>> raise LocalLearningError('num_modules=0: give at least 1 (1 is back-propagation)')
        LocalLearningError: num_modules=0: give at least 1 (1 is back-propagation)
    """
