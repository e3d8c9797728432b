"""Results of a run: verdicts of cases, distributions, documents. No rendering, no devices."""
