"""Making the program a service of systemd or launchd, and looking at what was made."""
