"""What a program costs before it runs: arithmetic, memory, communication, and the time of each."""
