"""What keeps a process alive and seen: warm server, lifeline, GPU claims, several devices, locks, records."""
