"""The networks: autoencoders behind one interface, and discriminators."""
