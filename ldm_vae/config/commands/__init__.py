"""The options of the commands other than `train`: a file a command, and what several share. No torch."""
