"""What a run produced: verdicts of cases, distributions, documents. No rendering, no devices."""
