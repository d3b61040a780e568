"""What this machine offers to a run, what each finding means for it, and the command that mends it. Nothing is changed here."""
