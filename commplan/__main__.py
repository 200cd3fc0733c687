"""``python -m commplan``: the command line where the script ``commplan`` is not on the path."""

from compiler.cli import main

main()
