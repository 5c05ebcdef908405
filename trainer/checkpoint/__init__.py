"""What a run resumes from: folders that are whole or not there, for any number of ranks."""
