"""`python -m modeling_sevlm` is `sevlm`; see sevlm.py."""

import sys

from sevlm import main


if __name__ == "__main__":
    sys.exit(main())
