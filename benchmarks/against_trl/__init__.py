"""Equal work for this library and for TRL, side by side: memory, time and accuracy as ratios with intervals."""
