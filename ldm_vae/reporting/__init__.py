"""Results as a page for people: one HTML file of evaluations, probes and runs."""
