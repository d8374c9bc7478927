"""The command line: from what was typed to checked settings, and to the job."""
