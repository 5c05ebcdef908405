"""The processes that train: started here or by an engine, watched, and told who they are."""
