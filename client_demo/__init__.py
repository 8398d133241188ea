"""Browser pages and the command-line client."""
