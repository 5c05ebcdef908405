"""What a document becomes: source and target of one training example."""
