"""Where documents come from: locations, records, documents."""
