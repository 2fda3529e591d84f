"""One thread at a time where libraries keep what they are doing in their modules.

torch.export, torch.fx and converters put functions of their own in place of their classes' while they trace: a second
thread finds those, and traces nonsense or fails.
"""

from threading import RLock

TRACING = RLock()
"""Held while a model is captured or a file is written, and by a whole run."""
