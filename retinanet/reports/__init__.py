"""What people see of data, runs and evaluations: tables, files, plots, pictures."""
