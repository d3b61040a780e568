"""The report: one page over a run's records. It reads records only, refuses nothing, and shows unknown as unknown."""
