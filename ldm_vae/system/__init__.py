"""What knows neither images nor models: files, memory, worker processes, randomness."""
