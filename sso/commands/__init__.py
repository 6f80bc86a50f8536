"""What `sso <command>` does, by what it is about; sso/cli.py parses."""
