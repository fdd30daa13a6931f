"""The parts of a run. Each gives what goes into one JSON file."""
