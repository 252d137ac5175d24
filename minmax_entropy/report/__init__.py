"""Pictures, tables and curves."""
