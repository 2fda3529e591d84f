"""What the runtimes report to their makers, and take out of files as settings, is off in every process of ours."""

from qexport.compat.patches import MODEL_SETTINGS, NO_TELEMETRY, hide_modules, set_variables


def without_telemetry() -> None:
    """Switch it off; `import qexport` does it, before any runtime is imported, and costs nothing."""
    set_variables(*NO_TELEMETRY, MODEL_SETTINGS)
    hide_modules()
