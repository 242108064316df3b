"""`python -m hq_tokenizers`, the same as the command `hq-tokenizers`."""

from hq_tokenizers.cli import main

main()
