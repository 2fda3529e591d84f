"""What the runtimes report to their makers is off in every process of ours."""

from qexport.compat.patches import NO_TELEMETRY, hide_modules, set_variables


def without_telemetry() -> None:
    """Switch it off; `import qexport` does it, before any runtime is imported, and costs nothing."""
    set_variables(*NO_TELEMETRY)
    hide_modules()
