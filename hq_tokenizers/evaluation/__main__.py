"""`python -m hq_tokenizers.evaluation CONFIG.yaml`, which torchrun can launch in several processes."""

import sys

from hq_tokenizers.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
