"""What runs as a process of its own, so that its CPU time and memory are its own."""
