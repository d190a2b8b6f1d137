"""The embedded model, the sapling: grow it again from nothing, and measure what it can do."""
