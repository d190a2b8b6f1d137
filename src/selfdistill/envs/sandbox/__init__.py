"""Running untrusted programs: see `pool.Sandbox`."""
