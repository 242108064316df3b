"""What a command shows while it works, and what it leaves: progress, pictures, curves, tables, report.json."""
