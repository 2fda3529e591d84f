"""`python -m qexport`."""

import sys

from qexport.cli import main

sys.exit(main())
