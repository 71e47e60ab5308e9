"""Floor 0: victims, threat models, spaces, the runner and the result; everything else stands on it."""
