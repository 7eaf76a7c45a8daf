"""What a user can set: dataclasses, and how files and command lines fill them. No torch."""
