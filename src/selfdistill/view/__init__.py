"""Tables and plots from run directories. Nothing here trains, or needs what training needs."""
