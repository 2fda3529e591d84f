"""`python -m qexport`."""

import sys

from qexport.cli.app import main

sys.exit(main())
